"""Windows of a text: what is measured and calibrated on, as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export import regular_file
from ernie_export.errors import UserError

Array = np.ndarray[Any, Any]


@dataclass
class Windows:
    ids: Array
    """[windows, tokens] int64."""
    source: str
    """The name of the text."""

    @property
    def sha256(self) -> str:
        """Over the ids as little-endian int64."""
        return hashlib.sha256(np.ascontiguousarray(self.ids, "<i8").tobytes()).hexdigest()


def spread(path: Path, encode: Callable[[str], list[int]], count: int, tokens: int, least: int) -> Windows:
    """`count` windows of `tokens` each, spread evenly over the text in a file of at least `least` tokens.

    Raises:
        UserError: the text cannot be read, is not UTF-8, or is too short.
    """
    try:
        text = regular_file.read(path).decode("utf-8")
    except OSError as error:
        raise UserError(
            f"The text {path} cannot be read ({error.strerror})", "Name a readable file."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"The text {path} is not UTF-8 (byte {error.start})", "Save it as UTF-8.") from error
    if not text.strip():
        raise UserError(f"The text {path} is empty", "Name a text file.")
    ids = np.array(encode(text), dtype=np.int64)
    if len(ids) < least:
        raise UserError(f"The text {path} has {len(ids)} tokens, {least} are needed", "Name a longer text.")
    starts = np.linspace(0, len(ids) - tokens, count).astype(int)
    return Windows(np.stack([ids[at : at + tokens] for at in starts]), path.name)
