"""The trials of a measurement of sensitivity, kept behind each layer so that a killed one goes on.

Losing what is kept costs time, nothing else: what cannot be read is made anew, what cannot be written is not.
"""

from __future__ import annotations

import json
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export import atomic
from ernie_export.plan.bits import Group
from ernie_export.recipe import PartFormat

Array = np.ndarray[Any, Any]


@dataclass
class Trial:
    """The model with one group of matrices in another format."""

    group: Group
    form: PartFormat
    hidden: Array
    """[W,S,H] float32: where it has come to."""
    with_head: bool = False
    """Whether the head is quantized too, or alone."""


@dataclass
class Reached:
    layer: int
    """The first that is left."""
    clean: Array
    """[W,S,H] float32: what it reads of the published model."""
    trials: list[Trial]
    """Those begun in the layers before it."""


class Unfinished:
    """One measurement's state, a file whose checksums tell whether it is whole; other ones beside it go."""

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> Reached | None:
        try:
            with np.load(self._path, allow_pickle=False) as file:
                state = json.loads(file["state"].tobytes())
                trials = [
                    Trial(Group(*group), PartFormat.model_validate(form), file[f"trial-{number}"], with_head)
                    for number, (group, form, with_head) in enumerate(state["trials"])
                ]
                return Reached(state["layer"], file["clean"], trials)
        except (OSError, LookupError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, now: Reached) -> None:
        told = [[trial.group, trial.form.model_dump(), trial.with_head] for trial in now.trials]
        state = json.dumps({"layer": now.layer, "trials": told}).encode()
        hidden = {f"trial-{number}": trial.hidden for number, trial in enumerate(now.trials)}
        beside = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for other in self._path.parent.glob(f"*{self._path.suffix}"):
                if other != self._path:
                    other.unlink()
            with beside.open("wb") as file:
                np.savez(
                    file, allow_pickle=False, state=np.frombuffer(state, np.uint8), clean=now.clean, **hidden
                )
                file.flush()
                os.fsync(file.fileno())
            beside.rename(self._path)
            atomic.sync(self._path.parent)
        except OSError:
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    def end(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
