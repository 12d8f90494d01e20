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
    generations: list[Generation]


def status(place: Place) -> Status:
    active = place.active()
    return Status(
        root=str(place.root),
        active=active.number if active else None,
        generations=[generation(place, installed) for installed in place.all()],
    )


def generation(place: Place, installed: Installed) -> Generation:
    known = installed.model_dump(exclude={"schema_version", "manifest_sha256"})
    return Generation(**known, refused=place.refused(installed.number))
