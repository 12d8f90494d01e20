"""Any exception as an error that is told in one line."""

from __future__ import annotations

from ernie_export import os_error
from ernie_export.errors import ErnieExportError, WorkError

INTERRUPTED = 130
"""The exit code of what the user himself ended."""


def as_error(exception: BaseException, defect: str = "This is a defect of ernie-export") -> ErnieExportError:
    """`defect`: what it is if nobody expected it."""
    if isinstance(exception, ErnieExportError):
        return exception
    if isinstance(exception, MemoryError):
        return WorkError("There is not enough memory", "Close other programs, or use a machine with more.")
    if isinstance(exception, OSError):
        return os_error.told(exception)
    return WorkError(
        f"{defect} ({type(exception).__name__}: {exception})",
        "Run the same with --debug and report what it prints.",
    )


def line(error: ErnieExportError) -> str:
    return f"error: {' '.join(str(error).split())}"
