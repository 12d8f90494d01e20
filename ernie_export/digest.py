"""SHA-256 of files of any size."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_export.progress import Step

PIECE = 8 << 20
"""Bytes of a file in memory while it is hashed."""


def sha256_of(path: Path, step: Step | None = None) -> str:
    """Hex SHA-256 of a file, read piece by piece; `step` advances by the bytes read."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            state.update(piece)
            if step is not None:
                step.advance(len(piece))
    return state.hexdigest()
