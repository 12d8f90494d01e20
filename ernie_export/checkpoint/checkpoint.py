"""A published ERNIE-4.5 checkpoint: every tensor that its config asks for, mapped from its files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ernie_export.checkpoint import fingerprints, synthetic
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.layout import EMBEDDING, HEAD
from ernie_export.checkpoint.matching import match
from ernie_export.checkpoint.safetensors import TensorFile, TensorInfo, changed
from ernie_export.checkpoint.shards import INDEX, SINGLE, Shards, gather, locate
from ernie_export.errors import UserError
from ernie_export.progress import Progress

Array = np.ndarray[Any, np.dtype[Any]]

# A file that was written less than this before it was looked at can change again with no change of its
# time of writing, so what was read from it is not remembered.
CLOCK_TICK_NS = 20_000_000


class ExpertWeights(NamedTuple):
    """One expert: gate and up [I, H], down [H, I]; views of the mapping."""

    gate: Array
    up: Array
    down: Array


class Checkpoint:
    """An open checkpoint; nothing of the weights is in memory but the pages that were touched.

    `tensors` maps the published name of every tensor of the model to its place, in the order in which
    the files hold them. Experts have whichever form the files have: `…experts.{e}.gate_proj.weight` or
    `…experts.gate_up_proj`; `expert()` reads both.
    """

    def __init__(self, path: Path, config: ErnieConfig, shards: Shards):
        self.path = path
        self.config = config
        self._shards = shards
        looked_at = time.time_ns()
        self.opened_as = self.identity()
        """What `identity` was then."""
        self._stamps = {path: _stamp(path) for path in shards.paths}
        self._settled = all(file.stat().st_mtime_ns < looked_at - CLOCK_TICK_NS for file in shards.paths)
        self._files = {shard: TensorFile(shard) for shard in shards.paths}
        matched = match(config, gather(list(self._files.values()), shards), path)
        self.tensors = matched.tensors
        self.notes: list[str] = [said] if (said := synthetic.note(path)) else []
        if not shards.index and (path / INDEX).is_file():
            self.notes.append(f"{INDEX} is ignored: there is a {SINGLE}, and transformers reads that one")
        if ahead := matched.multi_token_prediction:
            self.notes.append(f"multi-token prediction (mtp) is ignored: {len(ahead)} tensors")
        if matched.tied_head:
            self._check_tied(matched.tied_head)
            self.notes.append(f"{HEAD} is ignored: the head is tied, and it equals the embedding")
        self.digests = fingerprints.recall(self.opened_as, self.tensors)
        self._remembered = bool(self.digests)

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open a folder in the layout of Hugging Face.

        UserError names what is missing, what nobody asked for, and what has the wrong shape or type.
        """
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder", "Give the folder that holds config.json and the weights"
            )
        return cls(folder, ErnieConfig.read(folder), locate(folder))

    def array(self, name: str) -> Array:
        """A tensor as a read-only view of the mapping, in its stored type; bf16 as ml_dtypes.bfloat16."""
        info = self.tensors[name]
        return self._files[info.path].array(info.name)

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        """The weights of one expert of a MoE layer."""
        prefix = f"model.layers.{layer}.mlp.experts"
        if f"{prefix}.gate_up_proj" not in self.tensors:
            gate, up, down = map(self.array, self.expert_sources(layer, expert, ("gate", "up", "down")))
            return ExpertWeights(gate, up, down)
        gate_up = self.array(f"{prefix}.gate_up_proj")[expert]
        inner = self.config.moe_intermediate_size
        return ExpertWeights(gate_up[:inner], gate_up[inner:], self.array(f"{prefix}.down_proj")[expert])

    def expert_sources(self, layer: int, expert: int, kinds: Sequence[str]) -> list[str]:
        """The names of the tensors that hold an expert's matrices of these kinds ("gate", "up", "down")."""
        prefix = f"model.layers.{layer}.mlp.experts"
        if f"{prefix}.gate_up_proj" not in self.tensors:
            return [f"{prefix}.{expert}.{kind}_proj.weight" for kind in kinds]
        merged = {"gate": "gate_up", "up": "gate_up", "down": "down"}
        return [f"{prefix}.{kind}_proj" for kind in dict.fromkeys(merged[kind] for kind in kinds)]

    def sources(self, prefix: str) -> list[str]:
        """The names of the tensors below a prefix ("model.layers.3", "model.layers.3.mlp.experts")."""
        below = prefix.rstrip(".") + "."
        return [name for name in self.tensors if name.startswith(below)]

    @property
    def files(self) -> dict[str, int]:
        """Name and size in bytes of each weight file."""
        return {path.relative_to(self.path).as_posix(): file.nbytes for path, file in self._files.items()}

    def identity(self) -> str:
        """Hex SHA-256 over path, size, time and inode of every file and the config's bytes, as of now."""
        index = [self._shards.index] if self._shards.index else []
        looks = json.dumps([_look(path) for path in [*index, *self._shards.paths]])
        return hashlib.sha256(looks.encode() + self._config_bytes()).hexdigest()

    def _config_bytes(self) -> bytes:
        path = self.path / "config.json"
        return path.read_bytes() if path.is_file() else b""

    def digest(self, name: str) -> str:
        """Hex SHA-256 of a tensor's bytes; read once, then remembered in `digests`."""
        if name not in self.digests:
            state = hashlib.sha256()
            for piece in self._files[self.tensors[name].path].pieces(self.tensors[name].name):
                state.update(piece)
            self.digests[name] = state.hexdigest()
        return self.digests[name]

    def require_unchanged(self) -> None:
        """UserError names a weight file that is no longer what was opened. Cheap: nothing is read."""
        for path, opened in self._stamps.items():
            if _stamp(path) != opened:
                raise changed(path)

    def fingerprint(self, progress: Progress) -> str:
        """Hex SHA-256 over name, type, shape and digest of every tensor and the bytes of config.json.

        Reads what `digest` has not read yet. UserError when a file changed since the checkpoint was opened.
        """
        left = [name for name in self.tensors if name not in self.digests]
        if left:
            with (
                progress.step("Fingerprint", sum(self.tensors[name].nbytes for name in left), "B") as step,
                ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
            ):
                try:
                    for name, _ in zip(left, pool.map(self.digest, left), strict=True):
                        step.advance(self.tensors[name].nbytes)
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        rows = [
            [name, info.dtype, info.shape, self.digests[name]] for name, info in sorted(self.tensors.items())
        ]
        fingerprint = hashlib.sha256(json.dumps(rows).encode() + self._config_bytes()).hexdigest()
        self.require_unchanged()
        if self.identity() != self.opened_as:
            raise changed(self.path)
        if self._settled and not self._remembered:
            fingerprints.remember(self.opened_as, self.digests)
            self._remembered = True
        return fingerprint

    def _check_tied(self, head: TensorInfo) -> None:
        """A tied head may be in the file as well, if it is the embedding byte for byte."""
        embedding = self.tensors[EMBEDDING]
        pairs = zip(
            self._files[head.path].pieces(head.name),
            self._files[embedding.path].pieces(embedding.name),
            strict=True,
        )
        same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and all(
            np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pairs
        )
        if not same:
            raise UserError(
                f"{self.path}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}",
                "Set tie_word_embeddings to false in config.json if the head is its own",
            )


def _stamp(path: Path) -> tuple[int, ...]:
    """Size, time of writing and inode; of a missing file nothing."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _look(path: Path) -> list[str | int]:
    """What tells without reading that a file is still the same; a missing one looks like none."""
    stamp = _stamp(path)
    return [str(path.resolve() if stamp else path), *stamp]
