"""What went wrong, and what to do about it: the two kinds of error a user ever sees."""

from __future__ import annotations

from typing import ClassVar

LONGEST = 1000
"""Characters of a cause or a remedy."""


class ErnieExportError(Exception):
    """An error with its cause and its remedy; `str()` gives both on one line.

    What a hostile file has put into them neither moves a terminal's cursor nor fills its screen.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, remedy: str):
        self.cause = _shown(cause)
        self.remedy = _shown(remedy)
        super().__init__(self.cause, self.remedy)

    def __str__(self) -> str:
        return f"{self.cause}. {self.remedy}"


def _shown(text: str) -> str:
    text = "".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in text[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


class UserError(ErnieExportError):
    """The user's mistake: a wrong argument, a broken input file."""

    exit_code = 2


class WorkError(ErnieExportError):
    """The work failed: a gate, a verification, the machine."""

    exit_code = 1
