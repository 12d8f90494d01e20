"""The tables that people extend: a TOML file, a table a row."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ernie_export import regular_file
from ernie_export.errors import UserError
from ernie_export.nearest import did_you_mean

REINSTALL = "Correct it, or install ernie-export again."
_TABLES = TypeAdapter(dict[str, dict[str, Any]])


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str


AnyRow = TypeVar("AnyRow", bound=Row)


def read(path: Path, row: type[AnyRow], kind: str) -> list[AnyRow]:
    """The rows of a file, each with its title as `name`; `kind` is what they are: "targets".

    Raises:
        UserError: the file cannot be read, or is no such table.
    """
    try:
        tables = _TABLES.validate_python(tomllib.loads(regular_file.read(path).decode("utf-8")))
        return [row.model_validate({**table, "name": name}) for name, table in tables.items()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", REINSTALL) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}", REINSTALL) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested without end
        raise UserError(f"{path} is no table of {kind} ({error})", REINSTALL) from error


def find(name: str, known: Iterable[AnyRow], kind: str) -> AnyRow:
    """The row of that name; `kind` is what one of them is: "target".

    Raises:
        UserError: there is none.
    """
    named = {row.name: row for row in known}
    if name not in named:
        raise UserError(f"No {kind} is named {name!r}", did_you_mean(name, named))
    return named[name]
