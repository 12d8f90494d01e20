"""A bundle as an engine (ernie_export/engine/interface.py) of PyTorch and the kernels, without TensorRT.

The bundle's own graph is not opened: its weight files are what counts, and they are the same for every
runtime.  They are mapped, and copied to the device once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.engine.compatibility import require_room
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.interface import Fed, check_rows
from ernie_export.graph.weights import read_layout
from ernie_export.recipe import Recipe
from plugins.torch.library import Library
from plugins.torch.model import empty_cache, loaded, slots
from plugins.torch.operators import register

Array = np.ndarray[Any, Any]
#: Most tokens of a row in one run, which bounds the workspace and the activations.
PIECE = 2048


def mapped_weights(folder: Path, graph: str, device: torch.device) -> dict[str, Tensor]:
    """Every buffer of the model, from the bundle's files."""
    weights = {}
    for file in read_layout(folder / graph):
        for stored in file.tensors:
            array = np.memmap(folder / file.path, stored.dtype, "r", stored.offset, stored.shape)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that it cannot be written: nothing does
                weights[stored.name] = torch.from_numpy(array).to(device)
    return weights


class TorchEngine:
    def __init__(
        self,
        folder: Path,
        library: Library,
        activations: torch.dtype = torch.float16,
        cache_bits: int = 16,
    ):
        """activations: fp16 or bf16; cache_bits: 16, or 8 with a scale for each row of each head."""
        register(library)
        self.info = EngineInfo.read(folder)
        self.library, self.activations, self.cache_bits = library, activations, cache_bits
        self.config = ErnieConfig.read(folder)
        weights = mapped_weights(folder, self.info.graph, library.device)
        self.model = loaded(self.config, Recipe.read(folder / "recipe.toml").parts, weights, activations)

    def start(self, batch: int = 1, max_length: int | None = None) -> TorchSession:
        length = max_length or self.info.max_context
        require_room(self.info, batch, length)
        return TorchSession(self, batch, length)


class TorchSession:
    def __init__(self, engine: TorchEngine, batch: int, max_length: int):
        self.engine, self.max_length = engine, max_length
        self._lengths = [0] * batch
        device, activations, bits = engine.library.device, engine.activations, engine.cache_bits
        self.cache = empty_cache(engine.config, batch, max_length, device, activations, bits)

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def truncate(self, row: int, length: int) -> None:
        self._lengths[row] = min(length, self._lengths[row])

    def feed(
        self,
        rows: Sequence[Sequence[int]],
        all_logits: bool = False,
        given: Sequence[Mapping[str, Array]] = (),
    ) -> Fed:
        if given:
            raise ValueError("this engine computes every value itself")
        vocab = self.engine.info.vocab_size
        check_rows(rows, self._lengths, self.max_length, vocab)
        logits = [np.empty((0, vocab), np.float32) for _ in rows]
        if rows and rows[0] and all(len(row) == len(rows[0]) for row in rows):
            logits = list(self._feed(range(len(rows)), rows, all_logits))
        else:
            for index, row in enumerate(rows):
                if row:
                    (logits[index],) = self._feed(range(index, index + 1), [row], all_logits)
        self.engine.library.require_sound()
        return Fed(logits, [{} for _ in rows])

    def _feed(self, span: range, rows: Sequence[Sequence[int]], all_logits: bool) -> Array:
        """Rows of one length, piece by piece → [rows, all tokens or the last, V] float32."""
        made = []
        for begin in range(0, len(rows[0]), PIECE):
            piece = [row[begin : begin + PIECE] for row in rows]
            logits = self._run(span, piece, all_logits)
            made = [*made, logits] if all_logits else [logits]
        return torch.cat(made, 1).float().cpu().numpy()

    @torch.inference_mode()
    def _run(self, span: range, rows: list[Sequence[int]], all_logits: bool) -> Tensor:
        device, new = self.engine.library.device, len(rows[0])
        for slot in span:
            self._lengths[slot] += new
        lengths = torch.tensor([self._lengths[slot] for slot in span], device=device)[:, None]
        mask = (torch.arange(max(self._lengths), device=device) < lengths).long()
        positions = lengths - new + torch.arange(new, device=device)
        cache = slots(self.cache, span.start, span.stop)
        states, _ = self.engine.model.states(torch.tensor(rows, device=device), mask, positions, cache)
        return self.engine.model.logits(states if all_logits else states[:, -1:])
