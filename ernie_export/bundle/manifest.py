"""manifest.json: what a bundle is, and every file of it. The same inputs give the same bytes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ernie_export.bundle.files import MANIFEST, UNLISTED
from ernie_export.errors import UserError
from ernie_export.validate.document import Document
from ernie_export.validate.report import Claim, Source, Verdict


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
    FILE: ClassVar[str] = MANIFEST
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
    kit: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the manifest of the kit that it was built from, on its target; None: it was not."""

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
