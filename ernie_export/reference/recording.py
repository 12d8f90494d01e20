"""What the reference computes of some windows, layer by layer; kept on disk for another time if wished.

What is kept depends on the checkpoint and the windows alone, so it serves every format of the same
checkpoint, and a run that was killed goes on behind the last layer that was finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export import atomic
from ernie_export.errors import WorkError
from ernie_export.readable import size
from ernie_export.reference.layers import LayeredReference, Routing
from ernie_export.reference.states import States

Array = np.ndarray[Any, Any]
FORM = 1
"""Of a kept file; another form is not read."""
MOST = 20 << 30
"""Bytes that a folder of kept recordings may hold: the longest unused go first."""


@dataclass
class LayerRecord:
    hidden: Array
    """[W,S,H] float32 behind the layer."""
    states: States
    """What every operator computed of the first window, [S, …]."""
    routing: Routing | None


@dataclass
class Kept:
    """Where recordings are kept."""

    folder: Path
    fingerprint: str
    """Of the checkpoint."""


class Recording:
    """The layers in their order, each computed or read when its turn comes."""

    def __init__(self, reference: LayeredReference, ids: Array, kept: Kept | None = None):
        """ids [W,S] int64.

        Raises:
            WorkError: there is no room for what is to be kept.
        """
        self.reference, self.ids = reference, ids
        self.embedded = reference.embed(ids)
        self.read = 0
        """Layers that were there already."""
        self.folder = _prepared(reference, ids, kept) if kept else None

    def layers(self) -> Iterator[LayerRecord]:
        hidden = self.embedded
        for number in range(self.reference.num_layers):
            path = self.folder / f"layer-{number:03d}.npz" if self.folder else None
            record = _read(path) if path else None
            self.read += record is not None
            if record is None:
                record = self._computed(number, hidden)
                if path:
                    _write(path, record)
            hidden = record.hidden
            yield record

    def _computed(self, number: int, hidden: Array) -> LayerRecord:
        with self.reference.layer(number) as layer:
            output = layer.run(hidden)
            return LayerRecord(output.hidden, layer.states(hidden[0]), output.routing)

    @property
    def kept_bytes(self) -> int:
        return _size(self.folder) if self.folder else 0


def recorded_bytes(reference: LayeredReference, ids: Array) -> int:
    """About what a recording of `ids` takes, on disk."""
    config, tokens = reference.config, ids.shape[1]
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    inner = max(config.intermediate_size, config.shared_intermediate_size)
    width = 8 * config.hidden_size + heads + 2 * inner
    chosen = config.moe_num_experts + 3 * config.moe_k
    return 4 * reference.num_layers * (tokens * width + ids.size * (config.hidden_size + chosen))


def _prepared(reference: LayeredReference, ids: Array, kept: Kept) -> Path:
    """The folder of this very recording, with room for it."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    inputs = hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()
    key = json.dumps([FORM, kept.fingerprint, ids.shape, inputs, versions])
    folder = kept.folder / hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        wanted = recorded_bytes(reference, ids)
        _make_room(kept.folder, folder, wanted)
        free = shutil.disk_usage(folder).free + _size(folder)
    except OSError as error:
        raise WorkError(
            f"{kept.folder} cannot hold what the reference computes ({error.strerror})",
            "Name a folder that can be written, or let nothing be kept.",
        ) from error
    if free < wanted:
        raise WorkError(
            f"what the reference computes takes about {size(wanted)}, {kept.folder} has room for {size(free)}",
            "Free some space, name a folder on another disk, or let nothing be kept.",
        )
    return folder


def _make_room(folder: Path, keep: Path, wanted: int) -> None:
    """Remove the recordings that were not used for longest, until `wanted` bytes more are within the limit."""
    others = sorted(
        (path for path in folder.iterdir() if path.is_dir() and path != keep and len(path.name) == 32),
        key=lambda path: path.stat().st_mtime,
    )
    held = sum(map(_size, others))
    for path in others:
        if held + wanted <= MOST:
            break
        held -= _size(path)
        shutil.rmtree(path)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*"))


def _write(path: Path, record: LayerRecord) -> None:
    routing = {} if record.routing is None else vars(record.routing)
    arrays = {"hidden": record.hidden} | {f"routing:{name}": value for name, value in routing.items()}
    arrays |= {f"state:{name}": value for name, value in record.states.items()}
    beside = path.with_suffix(".part")
    try:
        with beside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        atomic.sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise WorkError(
            f"{path} cannot be written ({error.strerror})",
            "Free some space, or name a folder on another disk; what is kept already is used again.",
        ) from error


def _read(path: Path) -> LayerRecord | None:
    """None unless the file is there and whole: its checksums are checked."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        hidden = found.pop("hidden")
    except (OSError, LookupError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    routing = {
        name.removeprefix("routing:"): value for name, value in found.items() if name.startswith("routing:")
    }
    states = {
        name.removeprefix("state:"): value for name, value in found.items() if name.startswith("state:")
    }
    return LayerRecord(hidden, states, Routing(**routing) if routing else None)
