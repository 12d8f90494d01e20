"""What `deploy` and the program on a device say to each other, over the one connection that ssh gives.

    there   hello             once it runs
    here    offer             the bundle's documents
    there   step              what it does, and how far it is; whenever it likes
    there   want              a file, from some byte on
    here    those bytes       as they are, in the order in which they were wanted
    there   done, or failed   at the end

A message is a line of JSON. The receiver leads: it asks for what it lacks, from where an earlier try ended,
so what is there already never travels.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import FileEntry
from ernie_export.distribute.artifact import DOCUMENTS

PROTOCOL = 1
LONGEST = 1 << 20
"""Bytes of a message."""


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    def line(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


class Hello(Message):
    kind: Literal["ernie-export"] = "ernie-export"
    version: str
    protocol: int = PROTOCOL


def _documents(entries: dict[str, FileEntry]) -> dict[str, FileEntry]:
    if not set(DOCUMENTS) <= set(entries) <= set(UNLISTED):
        raise ValueError("these are not the documents of a bundle")
    return entries


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name[:500])


class Offer(Message):
    kind: Literal["offer"] = "offer"
    name: Annotated[str, AfterValidator(_printable)]
    """Where it comes from, for the device's records."""
    documents: Annotated[dict[str, FileEntry], AfterValidator(_documents)]


class Step(Message):
    kind: Literal["step"] = "step"
    title: str
    done: float = 0
    total: float | None = None
    unit: str = ""


class Want(Message):
    kind: Literal["want"] = "want"
    path: str
    start: Annotated[int, Field(ge=0)]


class Done(Message):
    kind: Literal["done"] = "done"
    generation: int
    signer: str | None
    already: bool
    """It was the active one before."""


class Failed(Message):
    kind: Literal["failed"] = "failed"
    cause: str
    remedy: str
    active: int | None
    """The generation that is active now."""


Told = TypeAdapter[Step | Want | Done | Failed](
    Annotated[Step | Want | Done | Failed, Field(discriminator="kind")]
)
"""What the receiver says after its hello."""
