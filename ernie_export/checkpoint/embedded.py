"""The small trained checkpoint that comes with the package."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder of ernie-nano, in the published layout."""
    return Path(__file__).parent / "ernie-nano"
