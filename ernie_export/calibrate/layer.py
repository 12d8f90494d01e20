"""One decoder layer: what its linears read, and its matrices rounded for that.

Inputs are those of the checkpoint's own model, not those behind the layers that were rounded before.
On ernie-nano neither is better (KL 0.56 of rounding to nearest either way, in four bits everywhere
0.43 against 0.42), and so each layer runs once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.calibrate.hessians import Hessians
from ernie_export.calibrate.record import CalibratedTensor
from ernie_export.errors import UserError
from ernie_export.graph.weights import source_of
from ernie_export.quantize.formats import BITS, Packed, quantize
from ernie_export.quantize.gptq import gptq

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.recipe import Calibration, PartFormat
    from ernie_export.reference.layers import LayeredReference

Array = np.ndarray[Any, Any]
FINAL_NORM = "model.norm.weight"
ALONE = -1
"""In place of an expert's number: the matrix is no expert's."""


@dataclass(frozen=True)
class _Fared:
    tokens: int
    error: float
    error_nearest: float


def observed(reference: LayeredReference, number: int, hidden: Array) -> Hessians:
    """What the linears of a layer read where `hidden` [W,S,H] enters it, which becomes what leaves it.

    Behind the last layer stands the head, which leaves it as it is.

    Raises:
        UserError: the text drives the layer to NaN or infinity.
        WorkError: the layer does not fit into memory.
    """
    hessians = Hessians()
    if number == reference.num_layers:
        with reference.head() as head:
            (name,) = (name for name in head.weights if name != FINAL_NORM)
            for window in hidden:
                hessians((name,), head.norm(window))
        return hessians
    with reference.layer(number) as layer:
        layer.run(hidden, hessians, out=hidden)
    if not (np.isfinite(hidden).all() and hessians.finite()):
        raise UserError(
            f"Layer {number} of the checkpoint gives NaN or infinity on the calibration text",
            "Name another text with --calibration, or fetch the checkpoint again.",
        )
    return hessians


class Rounding:
    """Rounds the matrices of one weight file, as the weight writer asks for them, from several threads."""

    def __init__(self, checkpoint: Checkpoint, hessians: Hessians, settings: Calibration):
        self._checkpoint, self._hessians, self._settings = checkpoint, hessians, settings
        self._found: dict[str, dict[int, _Fared]] = {}
        self._lock = threading.Lock()

    def pack(self, name: str, expert: int | None, matrix: Array, form: PartFormat) -> Packed:
        """The stored form of one matrix [N, K] of the initializer `name`, an expert's or the only one.

        Raises:
            NotFinite: as `quantize`.
        """
        if form.format not in BITS:
            return quantize(matrix, form)
        source = self._source(name, expert)
        tokens = self._hessians.tokens(source)
        if expert is not None and tokens < self._settings.least_tokens:
            packed, fared = quantize(matrix, form), _Fared(tokens, 0.0, 0.0)
        else:
            made = gptq(matrix, self._hessians.of(source), tokens, form)
            packed, fared = made.packed, _Fared(tokens, made.error, made.error_nearest)
        with self._lock:
            self._found.setdefault(name, {})[ALONE if expert is None else expert] = fared
        return packed

    def tensors(self) -> list[CalibratedTensor]:
        """How each initializer fared, by name."""
        return [_summary(name, self._found[name], self._settings) for name in sorted(self._found)]

    def _source(self, name: str, expert: int | None) -> str:
        """The published name of a weight that reads what the matrix reads."""
        if expert is None:
            return source_of(name, self._checkpoint)
        layer, kind = name.split(".")[1], "down" if name.endswith(".down") else "gate"
        return f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight"


def _summary(name: str, found: Mapping[int, _Fared], settings: Calibration) -> CalibratedTensor:
    rounded = {
        expert: fared.tokens
        for expert, fared in sorted(found.items())
        if expert != ALONE and fared.tokens < settings.least_tokens
    }
    used = [fared for expert, fared in sorted(found.items()) if expert not in rounded]
    nearest = sum(fared.error_nearest for fared in used)
    return CalibratedTensor(
        name=name,
        error=(sum(fared.error for fared in used) / nearest) ** 0.5 if nearest else 1.0,
        tokens=min((fared.tokens for fared in used), default=0),
        rounded=rounded,
    )
