"""The text that calibration reads: the user's, or the one that comes along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ernie_export.generate.windows import Windows, spread
from ernie_export.recipe import Calibration

DEFAULT = Path(__file__).parent / "calibration.txt"


def calibration_windows(
    path: Path | None, settings: Calibration, encode: Callable[[str], list[int]]
) -> Windows:
    """The windows that the recipe asks for, of the text in `path` or of the one that comes along.

    Raises:
        UserError: the text cannot be read, is not UTF-8, or has fewer tokens than the recipe asks for.
    """
    count = settings.tokens // settings.window
    return spread(path or DEFAULT, encode, count, settings.window, least=settings.tokens)
