"""The tables that people extend: a TOML file, a table a row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from ernie_export import toml_file
from ernie_export.errors import UserError
from ernie_export.nearest import did_you_mean

REINSTALL = "Correct it, or install ernie-export again."


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str


AnyRow = TypeVar("AnyRow", bound=Row)


def read(path: Path, row: type[AnyRow], kind: str) -> list[AnyRow]:
    """The rows of a file, each with its title as `name`; `kind` is what they are: "targets".

    Raises:
        UserError: the file cannot be read, or is no such table.
    """
    tables = toml_file.read(path, f"table of {kind}")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"The table of {kind} {path} is wrong ({name} is no table)", REINSTALL)
    return [
        toml_file.checked(row, {**table, "name": name}, path, f"table of {kind}", REINSTALL)
        for name, table in tables.items()
    ]


def find(name: str, known: Iterable[AnyRow], kind: str) -> AnyRow:
    """The row of that name; `kind` is what one of them is: "target".

    Raises:
        UserError: there is none.
    """
    named = {row.name: row for row in known}
    if name not in named:
        raise UserError(f"No {kind} is named {name!r}", did_you_mean(name, named))
    return named[name]
