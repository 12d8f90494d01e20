"""A JSON document that is written one way only, so that no byte of it can change unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ernie_export import atomic
from ernie_export.errors import UserError
from ernie_export.spelling import spelled

LARGEST = 64 << 20
"""Bytes; no honest document comes near, and a hostile one is not read into memory."""


class Document(BaseModel):
    """The base of a bundle's documents. NaN and infinities are written as strings, as JSON has none.

    A field that is added later has a default, so that a document written before it can still be read.
    What a file is checked against is therefore its own content, not what would be written today.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")
    KIND: ClassVar[str]
    """What to call it in an error: "report"."""
    REMEDY: ClassVar[str]
    """What to do about a damaged one."""

    schema_version: int

    def render(self) -> bytes:
        """UTF-8 JSON: keys sorted, one space of indentation, a newline at the end."""
        return spelled(json.loads(self.model_dump_json()))

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Self:
        """The document in `data`, which came from `path`.

        Raises:
            UserError: it is not JSON, not such a document, of another version, or spelled in another way.
        """
        try:
            document = cls.model_validate_json(data)
        except ValidationError as error:
            raise cls._mistake(error.errors()[0], path) from error
        try:
            content = json.loads(data)
            ours = spelled(content) == data and _within(content, json.loads(document.model_dump_json()))
        except ValueError:  # a number without end, or none
            ours = False
        if not ours:
            raise UserError(f"The {cls.KIND} {path} was edited", cls.REMEDY)
        cls.check(content, path)
        return document

    @classmethod
    def check(cls, content: dict[str, Any], path: Path) -> None:
        """What a kind of document demands of a file's content; UserError where it is not so."""

    @classmethod
    def _mistake(cls, first: ErrorDetails, path: Path) -> UserError:
        where = ".".join(map(str, first["loc"]))
        if where == "schema_version" and first["type"] != "missing":
            said = f"has schema version {str(first['input'])[:20]}"
        elif first["type"] == "extra_forbidden":
            said = f"holds {where[:100]!r}"
        else:
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            return UserError(f"The {cls.KIND} {path} is damaged ({reason})", cls.REMEDY)
        return UserError(
            f"The {cls.KIND} {path} {said}, unknown here", "Use the version of ernie-export that wrote it."
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """The document in a file.

        Raises:
            UserError: it cannot be read, or is none.
        """
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST + 1)
        except OSError as error:
            raise UserError(f"The {cls.KIND} {path} cannot be read ({error.strerror})", cls.REMEDY) from error
        if len(data) > LARGEST:
            raise UserError(f"The {cls.KIND} {path} is over {LARGEST >> 20} MB", cls.REMEDY)
        return cls.parse(data, path)

    def write(self, path: Path) -> None:
        """Write the file so that a killed process leaves the old one or the new one."""
        atomic.write(path, self.render())


def _within(content: object, whole: object) -> bool:
    """Whether all that `content` says, `whole` says in the same words; it may say more."""
    if isinstance(content, dict) and isinstance(whole, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in content.items())
    if isinstance(content, list) and isinstance(whole, list):
        return len(content) == len(whole) and all(map(_within, content, whole))
    return type(content) is type(whole) and content == whole
