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
from ernie_export.validate.document import LARGEST

PROTOCOL = 1
LONGEST = 1 << 20
"""Bytes of a message."""
LONGEST_OBSERVED = 86400.0
"""Seconds."""


def _printable(text: str) -> str:
    """What neither moves a terminal's cursor nor fills its screen."""
    return "".join(character if character.isprintable() else "?" for character in text[:500])


Text = Annotated[str, AfterValidator(_printable)]
Amount = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
Generation = Annotated[int, Field(ge=0, lt=1 << 31)]


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    def line(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


class Hello(Message):
    kind: Literal["ernie-export"] = "ernie-export"
    version: Text
    protocol: int = PROTOCOL


def _documents(entries: dict[str, FileEntry]) -> dict[str, FileEntry]:
    if not set(DOCUMENTS) <= set(entries) <= set(UNLISTED):
        raise ValueError("these are not the documents of a bundle")
    if any(entry.size > LARGEST for entry in entries.values()):
        raise ValueError(f"a document is over {LARGEST >> 20} MB")
    return entries


class Offer(Message):
    kind: Literal["offer"] = "offer"
    name: Text
    """Where it comes from, for the device's records."""
    documents: Annotated[dict[str, FileEntry], AfterValidator(_documents)]
    observe: Annotated[float, Field(ge=0, le=LONGEST_OBSERVED, allow_inf_nan=False)] = 0
    """Seconds for which the service has to stay ready before the device says that it is done."""


class Step(Message):
    kind: Literal["step"] = "step"
    title: Text
    done: Amount = 0
    total: Amount | None = None
    unit: Text = ""


class Want(Message):
    kind: Literal["want"] = "want"
    path: str
    start: Annotated[int, Field(ge=0)]


class Done(Message):
    kind: Literal["done"] = "done"
    generation: Generation
    signer: Text | None
    already: bool
    """It was the active one before."""
    observed: float = 0
    """Seconds for which its service stayed ready; a version that cannot observe says nothing of it."""


class Failed(Message):
    kind: Literal["failed"] = "failed"
    cause: str
    remedy: str
    active: Generation | None
    """The generation that is active now."""


Told = TypeAdapter[Step | Want | Done | Failed](
    Annotated[Step | Want | Done | Failed, Field(discriminator="kind")]
)
"""What the receiver says after its hello."""
