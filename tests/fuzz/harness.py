"""What a harness is: seeds, and what is done with bytes that may be anything."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

from ernie_export.errors import UserError, WorkError

LONGEST = 4096
"""Characters of an answer; a line that a person is to read is shorter."""
FOLDER = Path(__file__).parent
REGRESSIONS = FOLDER / "regressions"
"""What once was a finding: a folder a harness, a file an input."""


class Harness(Protocol):
    """A module of `tests.fuzz.harnesses`."""

    JSON: bool
    """Whether inputs are JSON, so that values are mutated beside bytes."""
    TOKENS: Iterable[bytes]
    """What the format is made of, for the fuzzer to put in."""

    def seeds(self) -> Iterable[bytes]:
        """Inputs that are right, or nearly so."""
        ...

    def parse(self, data: bytes, folder: Path) -> None:
        """Everything that is done with such bytes; `folder` is empty at first, and the same each time.

        Raises:
            UserError, WorkError: the bytes are refused. Whatever else it raises is a finding.
        """
        ...


def names() -> list[str]:
    return sorted(path.stem for path in (FOLDER / "harnesses").glob("*.py"))


def load(name: str) -> Harness:
    return cast(Harness, importlib.import_module(f"tests.fuzz.harnesses.{name}"))


def regressions(name: str) -> list[Path]:
    return sorted((REGRESSIONS / name).glob("*"))


def run(harness: Harness, data: bytes, folder: Path) -> None:
    """One input; raises what is a finding, and nothing for one that is read, or refused in a clear line."""
    try:
        harness.parse(data, folder)
    except (UserError, WorkError) as error:
        line = str(error)
        assert error.cause and error.remedy, line
        assert len(line) <= LONGEST, f"an answer of {len(line)} characters: {line[:200]}"
        unprintable = [c for c in line if not c.isprintable() and not c.isspace()]
        assert not unprintable, f"an answer with {unprintable!r}"


def canonical(value: object) -> bytes:
    """JSON in the one spelling of validate/document.py."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def as_object(data: bytes) -> dict[str, object] | None:
    """The JSON object in the bytes, if they hold one."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
