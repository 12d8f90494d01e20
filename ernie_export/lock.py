"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ernie_export.errors import WorkError

FILE = ".lock"


@contextmanager
def held(folder: Path, remedy: str = "Wait for it, or name another --output.") -> Iterator[None]:
    """Hold the folder alone; the lock goes with the process, however it ends.

    Raises:
        WorkError: another process holds it.
    """
    with (folder / FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkError(f"another run is at work in {folder}", remedy) from error
        yield
