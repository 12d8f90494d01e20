"""Where a measurement was taken: versions, machine, memory."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

import ernie_export

PACKAGES = (
    "numba", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxscript", "polygraphy",
    "safetensors", "tokenizers", "torch", "transformers",
)  # fmt: skip


def software() -> dict[str, str]:
    """The version of everything that has a part in the result, of what is installed."""
    versions = {"ernie-export": ernie_export.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, str | int]:
    """What a time or a size of memory depends on."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _processor() -> str:
    """The CPU's own name where Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def peak_memory() -> int:
    """Bytes of memory that this process has held at most since it began."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
