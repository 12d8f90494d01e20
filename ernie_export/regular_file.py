"""Reading a small file that came from elsewhere: never one that would wait, or run on, for ever."""

from __future__ import annotations

import errno
import os
from pathlib import Path

LARGEST = 256 << 20
"""Bytes; no honest file comes near, and a hostile one is not read into memory."""


def read(path: Path) -> bytes:
    """The bytes of a file; OSError where there is none, it is a folder, a pipe or a device, or too large."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a pipe or a device")
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, f"it is over {LARGEST >> 20} MB")
    return data
