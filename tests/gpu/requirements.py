"""What the machine lacks, a line each, with how to get it.  Imports the standard library alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def nvcc() -> Path | None:
    """The compiler of the toolkit that is named, on the path, where it usually lies, or that pip installed."""
    site = [Path(sysconfig.get_path(kind)) / "nvidia" for kind in ("purelib", "platlib")]
    folders = [
        Path(os.environ["ERNIE_CUDA_ROOT"]) / "bin" if os.environ.get("ERNIE_CUDA_ROOT") else None,
        Path(found).parent if (found := shutil.which("nvcc")) else None,
        Path("/usr/local/cuda/bin"),
        *(folder / "cu13" / "bin" for folder in site),
        *(folder / "cuda_nvcc" / "bin" for folder in site),
    ]
    return next((folder / "nvcc" for folder in folders if folder and (folder / "nvcc").exists()), None)


def missing(emulated: bool) -> Iterator[str]:
    if sys.version_info < (3, 10):  # noqa: UP036 - whatever python3 is on that machine
        yield f"Python is {sys.version.split()[0]}: 3.10 or newer is needed (PYTHON=python3.12 tests/gpu/run)."
    for module in ("torch", "numpy"):
        if importlib.util.find_spec(module) is None:
            yield f"{module} is not installed for {sys.executable}: `{sys.executable} -m pip install {module}`."
    if shutil.which("g++") is None:
        yield "g++ is not installed: `apt-get install g++`."
    if not emulated and nvcc() is None:
        yield (
            "nvcc is not installed: install CUDA's toolkit and name it in ERNIE_CUDA_ROOT, or "
            "`pip install 'ernie-export[plugins]'`."
        )
    if not emulated and importlib.util.find_spec("torch"):
        yield from _gpu()


def _gpu() -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        yield (
            "PyTorch finds no GPU: look at `nvidia-smi`, and that torch is a build for CUDA; "
            "--emulated tries all of this on the CPU."
        )
    elif torch.cuda.get_device_capability() < (8, 0):
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        yield f"{name} has compute capability {major}.{minor}: the kernels need 8.0 or newer."
