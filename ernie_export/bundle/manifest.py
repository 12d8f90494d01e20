"""manifest.json: what a bundle is, and every file of it. The same inputs give the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ernie_export.errors import UserError
from ernie_export.progress import Step
from ernie_export.validate.document import Document
from ernie_export.validate.report import Claim, Report, Source, Verdict

SIGNATURE = "model.sig"
"""Who stands behind the bundle: made over all its other files, so no manifest lists it."""
PIECE = 8 << 20
"""Bytes of a file in memory while it is hashed."""


def _inside(path: str) -> str:
    """A path as this version writes it, that cannot lead out of the bundle, on any system."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or pure.as_posix() != path or set("\\:\0") & set(path):
        raise ValueError(f"{path!r} is no plain path inside the bundle")
    if path in (".", *UNLISTED):
        raise ValueError(f"{path!r} cannot be listed")
    return path


class FileEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Document):
    FILE: ClassVar[str] = "manifest.json"
    KIND: ClassVar[str] = "manifest"
    REMEDY: ClassVar[str] = "Fetch or build the bundle again."

    schema_version: Literal[1] = 1
    checkpoint: Source
    recipe: str
    target: str
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]
    """Every file but the manifest itself, the report, whose times differ from run to run, and a signature."""
    software: dict[str, str]
    verdict: Verdict
    claims: list[Claim]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a bundle.

        Raises:
            UserError: the folder is no bundle, or its manifest is damaged.
        """
        if not (folder / cls.FILE).is_file():
            raise UserError(
                f"{folder} is no bundle: it holds no {cls.FILE}",
                "Name the folder that `ernie-export build` wrote.",
            )
        return cls.load(folder / cls.FILE)


UNLISTED = (Manifest.FILE, Report.FILE, SIGNATURE)
"""What a bundle may hold that its manifest does not list."""


def sha256_of(path: Path, step: Step | None = None) -> str:
    """Hex SHA-256 of a file, read piece by piece; `step` advances by the bytes read."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            state.update(piece)
            if step is not None:
                step.advance(len(piece))
    return state.hexdigest()
