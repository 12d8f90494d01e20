"""A JSON document that is written one way only, so that no byte of it can change unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ernie_export import atomic
from ernie_export.errors import UserError

LARGEST = 64 << 20
"""Bytes; no honest document comes near, and a hostile one is not read into memory."""


class Document(BaseModel):
    """The base of a bundle's documents. NaN and infinities are written as strings, as JSON has none."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")
    KIND: ClassVar[str]
    """What to call it in an error: "report"."""
    REMEDY: ClassVar[str]
    """What to do about a damaged one."""

    schema_version: int

    def render(self) -> bytes:
        """UTF-8 JSON: keys sorted, one space of indentation, a newline at the end."""
        text = json.dumps(json.loads(self.model_dump_json()), sort_keys=True, indent=1, ensure_ascii=False)
        return text.encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Self:
        """The document in `data`, which came from `path`.

        Raises:
            UserError: it is not JSON, not such a document, of another version, or spelled in another way.
        """
        try:
            document = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            if where == "schema_version" and first["type"] != "missing":
                raise UserError(
                    f"The {cls.KIND} {path} has schema version {str(first['input'])[:20]}, unknown here",
                    "Use the version of ernie-export that wrote it.",
                ) from error
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            raise UserError(f"The {cls.KIND} {path} is damaged ({reason})", cls.REMEDY) from error
        if document.render() != data:
            raise UserError(f"The {cls.KIND} {path} was edited", cls.REMEDY)
        return document

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
