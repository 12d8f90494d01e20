"""What is installed on a device, for a person or a script."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ernie_export.device.place import Installed, Place
from ernie_export.validate.asking import Tried


class Generation(BaseModel):
    model_config = ConfigDict(frozen=True)

    number: int
    source: str
    kit: str | None
    """SHA-256 of the manifest of the kit that it was built from here; None: it came as it is."""
    checkpoint: str
    recipe: str
    target: str
    built: str
    signer: str | None
    before: int | None
    """The generation that was active when this one came."""
    tried: Tried | None
    """What its trial saw on this device."""
    max_token_ms: float | None
    """The ceiling that it was held to."""
    refused: str | None
    """Why it is not used."""


class Status(BaseModel):
    """What `device status --json` prints."""

    model_config = ConfigDict(frozen=True)

    root: str
    active: int | None
    pending: int | None
    """The generation with which nobody has seen the service ready yet: an installation is under way, or was cut off."""
    generations: list[Generation]
    damaged: list[int]
    """Generations whose record cannot be read any more."""


def status(place: Place) -> Status:
    pending, found = place.pending(), place.all()
    return Status(
        root=str(place.root),
        active=place.active_number(),
        pending=pending.number if pending else None,
        generations=[generation(place, installed) for installed in found],
        damaged=sorted({*place.numbers()} - {installed.number for installed in found}),
    )


def generation(place: Place, installed: Installed) -> Generation:
    known = installed.model_dump(exclude={"schema_version", "manifest_sha256"})
    return Generation(**known, refused=place.refused(installed.number))
