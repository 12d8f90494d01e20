"""Builds the kernels' library: `python plugins/build.py plain address thread coverage cuda`.

All but cuda are for this machine's CPU: address and thread with sanitizers, coverage counts the lines that run.
The toolkit is the one in ERNIE_CUDA_ROOT, else the one that pip installed (the extra `plugins`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
EMULATED = {"plain": "", "address": "address", "thread": "thread", "coverage": "coverage"}


def toolkit() -> Path:
    """The CUDA toolkit: a folder with include/cuda_fp16.h and bin/nvcc."""
    named = os.environ.get("ERNIE_CUDA_ROOT")
    root = Path(named) if named else Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"
    if not (root / "include" / "cuda_fp16.h").exists():
        sys.exit(f"{root} is no CUDA toolkit. Run `make plugins`, or name one in ERNIE_CUDA_ROOT.")
    return root


def build(flavour: str, output: Path | None = None, sm: str = "") -> Path:
    """→ the folder with libernie_kernels.so, up to date; several processes may ask at once."""
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed. Run `make system-deps`.")
    folder = output or SOURCE.parent / "build" / "plugins" / flavour
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"-DERNIE_CUDA_ROOT={toolkit()}"]
    if flavour in EMULATED:
        options += ["-DERNIE_EMULATION=ON", f"-DERNIE_SANITIZER={EMULATED[flavour]}"]
    if sm:
        options.append(f"-DERNIE_SM={sm}")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("cmake", "-S", str(SOURCE), "-B", str(folder), "-G", "Ninja", *options)
        run("cmake", "--build", str(folder))
    return folder


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}{done.stderr[-3000:]}")


if __name__ == "__main__":
    for flavour in sys.argv[1:]:
        if flavour not in (*EMULATED, "cuda"):
            sys.exit(f"{flavour} is none of {', '.join(EMULATED)}, cuda.")
        print(build(flavour), flush=True)
