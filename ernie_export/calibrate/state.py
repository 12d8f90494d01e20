"""How far a calibration is: what the next layer reads, and how the layers before it fared.

A killed build goes on at the first layer that is not finished.  `state.json` names the hidden state
that belongs to it, so that both change at one instant.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ernie_export import atomic
from ernie_export.calibrate.record import CalibratedTensor

Array = np.ndarray[Any, Any]


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    key: str
    layer: int
    tensors: list[CalibratedTensor]


@dataclass
class Progressed:
    layer: int
    """The first that is not finished."""
    hidden: Array
    """[W,S,H] float32: what it reads."""
    tensors: list[CalibratedTensor]
    """Those of the layers before it."""


class Journal:
    """The state of one calibration in a folder; `key` is the digest of all that it is made from."""

    def __init__(self, folder: Path, key: str):
        self._folder, self._key, self._state = folder, key, folder / "state.json"
        folder.mkdir(exist_ok=True)

    def read(self) -> Progressed | None:
        """None: nothing was begun, or it was another calibration."""
        try:
            state = _State.model_validate_json(self._state.read_bytes())
            if state.key == self._key:
                return Progressed(state.layer, np.load(self._hidden(state.layer)), list(state.tensors))
        except (OSError, ValueError):
            pass
        self._state.unlink(missing_ok=True)  # before a hidden state that it names is written over
        return None

    def write(self, now: Progressed) -> None:
        path = self._hidden(now.layer)
        with path.open("wb") as file:
            np.save(file, now.hidden)
            file.flush()
            os.fsync(file.fileno())
        state = _State(key=self._key, layer=now.layer, tensors=now.tensors)
        atomic.write(self._state, state.model_dump_json(indent=1).encode())
        for other in self._folder.glob("hidden-*.npy"):
            if other != path:
                other.unlink()

    def _hidden(self, layer: int) -> Path:
        return self._folder / f"hidden-{layer:03d}.npy"
