"""How long a bundle takes to open, in a process of its own: with its files in memory, and without.

`python -m ernie_export.bench.opening FOLDER [THREADS]` opens it once and prints an `Opened` as JSON.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ernie_export.bench.memory import Held, Highest, held
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.open import open_engine
from ernie_export.errors import WorkError

CHUNK = 8 << 20


class Opened(BaseModel):
    model_config = ConfigDict(frozen=True)

    seconds: float
    """Of opening alone: the runtime's library is loaded already."""
    after: Held
    highest_anonymous: int


class Opening(BaseModel):
    model_config = ConfigDict(frozen=True)

    bytes: int
    """Of the files in the bundle."""
    warm: Opened
    """Its files are in memory; the fastest of the repeats."""
    cold: Opened | None
    """Its files were dropped from memory before; None where the system cannot be asked to."""
    reading: float | None
    """Seconds to read all its files from the disk, one after the other."""


def opening(folder: Path, threads: int | None = None, repeats: int = 2) -> Opening:
    """
    Raises:
        WorkError: the bundle does not open.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    reading = cold = None
    if hasattr(os, "posix_fadvise"):
        drop(files)
        reading = read(files)
        drop(files)
        cold = open_elsewhere(folder, threads)
    warm = min((open_elsewhere(folder, threads) for _ in range(repeats)), key=lambda opened: opened.seconds)
    return Opening(bytes=sum(path.stat().st_size for path in files), warm=warm, cold=cold, reading=reading)


def drop(files: list[Path]) -> None:
    """Ask the system to forget their pages; those that another process maps stay."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a page not yet written cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: list[Path]) -> float:
    begun = time.perf_counter()
    buffer = bytearray(CHUNK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begun


def open_elsewhere(folder: Path, threads: int | None) -> Opened:
    command = [sys.executable, "-m", __name__, str(folder), *([str(threads)] if threads else [])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
        raise WorkError(
            f"{folder} does not open in a process of its own: {last[0].rpartition('Error: ')[2]}",
            "Check the bundle with `ernie-export verify`, and the memory that is left.",
        )
    return Opened.model_validate_json(ran.stdout)


def open_here(folder: Path, threads: int | None) -> Opened:
    requires = EngineInfo.read(folder).requires
    # What loading the library takes is not the bundle's.
    importlib.import_module(requires.module if requires else "onnxruntime")
    with Highest() as highest:
        begun = time.perf_counter()
        engine = open_engine(folder, threads=threads)
        seconds = time.perf_counter() - begun
        after = held()
    del engine
    most = max(highest.anonymous, after.anonymous)
    return Opened(seconds=seconds, after=after, highest_anonymous=most)


if __name__ == "__main__":
    print(open_here(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None).model_dump_json())
