"""What went wrong, and what to do about it: the two kinds of error a user ever sees."""

from __future__ import annotations

from typing import ClassVar


class ErnieExportError(Exception):
    """An error with its cause and its remedy; `str()` gives both on one line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, remedy: str):
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}. {self.remedy}"


class UserError(ErnieExportError):
    """The user's mistake: a wrong argument, a broken input file."""

    exit_code = 2


class WorkError(ErnieExportError):
    """The work failed: a gate, a verification, the machine."""

    exit_code = 1
