"""engines/weights.json: where each weight of an engine lies in the bundle, for devices that have no ONNX."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ernie_export import regular_file
from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.graph.weights import WeightFile

FILE = "engines/weights.json"


class Place(NamedTuple):
    file: str
    """Relative to the bundle."""
    offset: int
    nbytes: int


def rendered(files: Iterable[WeightFile]) -> bytes:
    places = {
        stored.name: Place(file.path, stored.offset, stored.nbytes)
        for file in files
        for stored in file.tensors
    }
    return (json.dumps(places, indent=1) + "\n").encode()


def read(folder: Path) -> dict[str, Place]:
    """
    Raises:
        UserError: there is none, or what it says cannot be.
    """
    path = folder / FILE
    try:
        content = json.loads(regular_file.read(path))
        places = {
            str(name): Place(str(file), int(offset), int(nbytes))
            for name, (file, offset, nbytes) in content.items()
        }
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "it is no table of places") from error
    for name, place in places.items():
        parts = Path(place.file).parts
        if not parts or Path(place.file).is_absolute() or ".." in parts:
            raise _damaged(path, f"{name} lies outside the bundle")
        try:
            size = (folder / place.file).stat().st_size
        except OSError as error:
            raise _damaged(folder / place.file, error.strerror) from error
        if place.offset < 0 or place.nbytes < 0 or place.offset + place.nbytes > size:
            raise _damaged(path, f"{name} does not lie in {place.file}")
    return places


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} cannot be used ({why})", "Fetch or build the bundle again.")
