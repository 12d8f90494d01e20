"""kit.json: what a device must have for a kit, and what is measured there."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ernie_export.kit.contents import PLAN
from ernie_export.validate.document import Document

Tokens = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Room(_Part):
    """Memory at the highest point of opening or running one row."""

    context: Tokens
    bytes: Bytes


class Decoded(_Part):
    """Decode is measured with this many tokens in the cache."""

    context: Tokens
    bytes: Bytes
    """That one token must read: the weights it uses and the cache it finds."""


class KitPlan(Document):
    FILE: ClassVar[str] = PLAN
    KIND: ClassVar[str] = "plan of the kit"
    REMEDY: ClassVar[str] = "Fetch or build the kit again."

    schema_version: Literal[1] = 1
    memory: Annotated[list[Room], Field(min_length=1)]
    """By context, ascending; the last is the engine's own most."""
    disk: Bytes
    """What a build writes beside the files that it shares with the kit."""
    prefill: Annotated[list[Tokens], Field(min_length=1)]
    """Prompts whose prefill is measured."""
    decode: Annotated[list[Decoded], Field(min_length=1)]
    tokens: Tokens
    """That are decoded at each context."""
    bandwidth: Annotated[float, Field(gt=0)] | None = None
    """Of the memory that the engine reads, at its peak, in bytes a second; None: measured on the device."""
