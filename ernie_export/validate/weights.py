"""The stored weights against the checkpoint's, tensor by tensor and expert by expert.

Running the operators shows a wrong weight only where the tried tokens lead through it; this reads
every one.  A quantized weight must lie within half a step of the checkpoint's, but for the few that
the search for the best scale clips; a float must be the checkpoint's, rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.graph.weights import (
    Stored,
    WeightFile,
    form_of,
    matrices,
    plain,
    read_layout,
    scales_of,
)
from ernie_export.quantize.formats import Packed, dequantize, packing
from ernie_export.validate.operators import relative_error

if TYPE_CHECKING:
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.progress import Step
    from ernie_export.recipe import PartFormat, Parts

Array = np.ndarray[Any, Any]
#: A weight half-way between two codes may be rounded to either: this much of a step is forgiven.
SLACK = 1e-3


@dataclass
class WeightError:
    """How far one stored tensor is from the checkpoint's; of experts, the worst of them."""

    name: str
    source: str
    """The checkpoint's name, or which expert of which layer."""
    relative_error: float
    misplaced: float
    """The part of the weights that are further than half a step from where they should be."""


def compare_weights(
    folder: Path, graph: str, checkpoint: Checkpoint, parts: Parts, step: Step
) -> list[WeightError]:
    """Every tensor of every weight file, in the graph's order; the files are mapped, a matrix at a time is read."""
    errors = []
    for file in read_layout(folder / graph):
        for stored in file.tensors:
            if not stored.name.endswith("scales"):
                found = list(_compare(folder, file, stored, checkpoint, parts))
                errors.append(max(found, key=lambda error: (error.misplaced, error.relative_error)))
                step.advance(stored.nbytes)
    return errors


def _compare(
    folder: Path, file: WeightFile, stored: Stored, checkpoint: Checkpoint, parts: Parts
) -> Iterator[WeightError]:
    def mapped(part: Stored) -> Array:
        return np.memmap(folder / file.path, part.dtype, "r", part.offset, part.shape)

    data = mapped(stored)
    form = form_of(stored.name, parts)
    if form is None:
        yield _error(stored.name, stored.name, plain(stored, checkpoint), data, np.zeros(()))
        return
    names = {part.name: part for part in file.tensors}
    scales = mapped(names[scales_of(stored.name)]) if packing(form)[0] else None
    many = data.ndim == 3  # experts, and a row of scales for each
    for number, (source, matrix) in enumerate(matrices(stored.name, checkpoint)):
        one = Packed(
            data[number] if many else data, None if scales is None else scales[number] if many else scales
        )
        yield _error(stored.name, source, matrix, dequantize(one, form), _half_step(one, matrix, form))


def _half_step(packed: Packed, matrix: Array, form: PartFormat) -> Array:
    """How far each weight may be from the checkpoint's, [N,K]."""
    if packed.scales is None:
        return np.abs(matrix.astype(packed.data.dtype).astype(np.float32) - matrix.astype(np.float32))
    steps = np.abs(packed.scales.astype(np.float32))
    return np.repeat(steps * (0.5 + SLACK), packing(form)[1], axis=1)


def _error(name: str, source: str, want: Array, got: Array, allowed: Array) -> WeightError:
    want, got = want.astype(np.float32), got.astype(np.float32)
    near = np.abs(got - want) <= allowed  # a NaN is never near
    return WeightError(name, source, relative_error(want, got), 1 - float(near.mean()))


def weight_metrics(errors: list[WeightError]) -> dict[str, float]:
    return {
        "weights.misplaced": max(error.misplaced for error in errors),
        "weights.relative_error": float(np.max([error.relative_error for error in errors])),
    }
