"""The libraries of TensorRT plugins that a wheel carries: one for each system, architecture and CUDA generation.

`make plugins` puts each into its folder, `linux-aarch64-cuda13/`, and beside it what it is.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ernie_export import regular_file
from ernie_export.errors import UserError
from ernie_export.stack import Version
from ernie_export.versions import numbers

if TYPE_CHECKING:
    from ernie_export.target import Target

FOLDER = Path(__file__).parent / "plugins"
LIBRARY = "libernie_plugins.so"
SAYS = "library.json"
_AGAIN = "Run `make plugins` in a checkout of ernie-export, or install a wheel that was built from one."


class PluginLibrary(BaseModel):
    """What stands in `library.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cuda: Version
    """Of the toolkit that compiled it."""
    sm: Annotated[list[Version], Field(min_length=1)]
    """Compute capabilities that it has machine code for."""
    tensorrt: Version
    """Of the headers that it was compiled with."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the library."""


def find(
    architecture: str, cuda: str | None = None, sm: str | None = None, folder: Path | None = None
) -> tuple[Path, PluginLibrary]:
    """The library for machines of an architecture, whole, and what it is.

    Args:
        architecture: of the CPU, as `uname -m` tells it.
        cuda: the newest version that the driver takes; None: any will do.
        sm: compute capability of the GPU; None: any will do.

    Raises:
        UserError: there is none, it does not suit, or it is damaged.
    """
    before = f"linux-{architecture}-cuda"
    places = sorted(
        (folder or FOLDER).glob(f"{before}*"), key=lambda place: numbers(place.name.removeprefix(before))
    )
    if not places:
        raise UserError(f"There are no TensorRT plugins for {architecture} here", _AGAIN)
    path = places[-1] / LIBRARY
    library = _read(path)
    if cuda is not None and numbers(cuda)[0] < numbers(library.cuda)[0]:
        raise UserError(
            f"The TensorRT plugins are compiled with CUDA {library.cuda}, the driver takes {cuda} at most",
            f"Install a driver for CUDA {numbers(library.cuda)[0]} (580 or newer).",
        )
    if sm is not None and sm not in library.sm:
        raise UserError(
            f"The TensorRT plugins are for compute capability {' '.join(library.sm)}, the GPU has {sm}",
            _AGAIN,
        )
    return path, library


def of(target: Target) -> tuple[Path, PluginLibrary]:
    """The library that engines for a target call.

    Raises:
        UserError: as `find`.
    """
    return find(target.architecture or platform.machine(), target.ready_stacks[0].cuda, target.sm)


def _read(path: Path) -> PluginLibrary:
    """What a library is, after its digest was compared."""
    try:
        library = PluginLibrary.model_validate_json(regular_file.read(path.parent / SAYS))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{SAYS} is not what `make plugins` writes"
        raise UserError(f"The TensorRT plugins in {path.parent} cannot be read ({why})", _AGAIN) from error
    if digest != library.sha256:
        raise UserError(f"The library of TensorRT plugins {path} is damaged", _AGAIN)
    return library
