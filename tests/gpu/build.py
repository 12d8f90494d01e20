"""The library of the kernels for this machine's GPU, by nvcc alone: no CMake and no ninja are needed."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.gpu.requirements import nvcc

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "plugins" / "kernels"
LIBRARY = "libernie_kernels.so"


def build(sm: str) -> Path:
    """→ the library for one compute capability ("90").

    Raises:
        RuntimeError: in the compiler's words.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc is not installed")
    folder = ROOT / "build" / "gpu" / f"sm_{sm}"
    folder.mkdir(parents=True, exist_ok=True)
    code = f"-gencode=arch=compute_{sm},code=sm_{sm}"

    def compiled(source: Path) -> str:
        made = str(folder / f"{source.stem}{source.suffix}.o")
        output_of(str(compiler), "-std=c++17", "-O3", "-Xcompiler=-fPIC", code, "-c", str(source), "-o", made)
        return made

    # The longest first.
    sources = sorted(
        [*KERNELS.glob("*.cu"), *KERNELS.glob("*.cpp")], key=lambda path: path.stat().st_size, reverse=True
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    output_of(str(compiler), "-shared", "-cudart=static", code, *objects, "-o", str(folder / LIBRARY))
    return folder / LIBRARY


def build_emulated() -> Path:
    folder = output_of(sys.executable, str(ROOT / "plugins" / "build.py"), "plain").strip()
    return Path(folder) / LIBRARY


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return done.stdout
