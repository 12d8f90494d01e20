"""What a kit holds, read without any library: its manifest first, and the rest once every byte of it was checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_export import regular_file
from ernie_export.bundle.files import MANIFEST, REPORT, compare, walk
from ernie_export.engine.described import as_info
from ernie_export.errors import UserError
from ernie_export.progress import Progress
from ernie_export.spelling import seal_of

if TYPE_CHECKING:
    from ernie_export.engine.info import EngineInfo

PLAN = "kit.json"
"""A bundle that lists it is a kit."""
PROGRAM = "kit.pyz"
ENGINE = "engine.json"
AGAIN = "Fetch the kit again."


@dataclass(frozen=True)
class Listed:
    """A file, as the manifest lists it."""

    size: int
    sha256: str


class Contents:
    def __init__(self, folder: Path):
        """
        Raises:
            UserError: the folder is no kit, or its manifest is damaged.
        """
        self.folder = folder
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(
                f"{folder} is no kit: it holds no {MANIFEST}",
                f"Run the {PROGRAM} that lies in a kit, or name the kit's folder.",
            )
        self.manifest = read(path)
        self.digest = hashlib.sha256(regular_file.read(path)).hexdigest()
        """SHA-256 of the manifest: what a signature stands for, and what is built from the kit names."""
        try:
            self.files = {
                name: Listed(int(entry["size"]), str(entry["sha256"]))
                for name, entry in self.manifest["files"].items()
            }
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error})", AGAIN) from error
        if PLAN not in self.files:
            raise UserError(
                f"{folder} is a bundle and no kit", "It is used as it is: nothing is to be built."
            )

    def require_whole(self, progress: Progress, content: bool = True) -> None:
        """That every file is there as the manifest lists it, and nothing else; `content`: byte by byte.

        Raises:
            UserError: the first difference.
        """
        present, problems = walk(self.folder)
        problems += compare(self.folder, self.files, present, progress, content)
        if problems:
            raise UserError(f"The kit {self.folder} is damaged: {': '.join(problems[0])}", AGAIN)
        if self.report.get("seal") != seal_of(self.report):
            raise UserError(f"The kit's {REPORT} was edited: its seal is broken", AGAIN)
        if self.report.get("manifest_sha256") != self.digest:
            raise UserError(f"The kit's {REPORT} was sealed over another manifest", AGAIN)

    @cached_property
    def report(self) -> dict[str, Any]:
        return read(self.folder / REPORT)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """As `document.KitPlan` wrote it."""
        return read(self.folder / PLAN)

    @cached_property
    def info(self) -> EngineInfo:
        return as_info(read(self.folder / ENGINE))

    @property
    def module(self) -> str:
        """What Python imports of the runtime."""
        return str(self.info.requires and self.info.requires.module)

    @cached_property
    def target(self) -> str:
        return str(self.manifest["target"])


def read(path: Path) -> dict[str, Any]:
    """A JSON document.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        content = json.loads(regular_file.read(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (it is no JSON)", AGAIN) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it is no table)", AGAIN)
    return content
