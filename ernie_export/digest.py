"""SHA-256 of files of any size, and their bytes piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from io import RawIOBase

    from ernie_export.progress import Step

PIECE = 1 << 20
"""Bytes of a file in memory: what was read is still in the processor's cache when it is hashed and written."""


def pieces(file: BinaryIO | RawIOBase, most: int | None = None) -> Iterator[memoryview]:
    """What is left of a file, at most `most` bytes, through one buffer: a piece is gone when the next is asked for."""
    buffer = memoryview(bytearray(PIECE if most is None else min(PIECE, most)))
    left, raw = most, cast("RawIOBase", file)
    while count := raw.readinto(buffer if left is None else buffer[:left]):
        yield buffer[:count]
        left = left if left is None else left - count


def sha256_of(path: Path, step: Step | None = None) -> str:
    """Hex SHA-256 of a file, read piece by piece; `step` advances by the bytes read."""
    state = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for piece in pieces(file):
            state.update(piece)
            if step is not None:
                step.advance(len(piece))
    return state.hexdigest()
