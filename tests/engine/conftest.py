"""The native operators, built here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ernie_export.plan import machine

ROOT = Path(__file__).parents[2]
HEADERS = [ROOT / "build/onnxruntime-headers/usr/include/onnxruntime", Path("/usr/include/onnxruntime")]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_native(tmp_path_factory.mktemp("native"))


def build_native(folder: Path, *more: str) -> Path:
    missing = machine.CPU_FLAGS - machine.cpu_flags()
    headers = next((folder for folder in HEADERS if (folder / "onnxruntime_cxx_api.h").exists()), None)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    if not shutil.which("g++") or not headers:
        pytest.skip("g++ or ONNX Runtime's C++ headers are missing: run `make system-deps`")
    sources = machine.NATIVE.parent
    flags = [*(sources / "flags").read_text().split(), *more]
    built, source = folder / "libernie_cpu.so", sources / "operators.cpp"
    subprocess.run(["g++", *flags, "-Werror", "-isystem", headers, source, "-o", built], check=True)
    return built
