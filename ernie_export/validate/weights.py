"""The stored weights against the checkpoint's, tensor by tensor and expert by expert.

Running the operators shows a wrong weight only where the tried tokens lead through it; this reads
every one.  A quantized weight must lie within half a step of the checkpoint's, or of the end of what
its block's scale reaches where the checkpoint's is beyond that, and a calibrated one within the step
more that calibration may take; of FP8 and NVFP4 a step is the gap to the next number that there is.
A float must be the checkpoint's, rounded once.  That holds for any
scale, so how well the scales fit is measured beside it, by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.errors import UserError
from ernie_export.graph.weights import (
    Stored,
    WeightFile,
    form_of,
    matrices,
    plain,
    read_layout,
)
from ernie_export.quantize import formats, fp8, nvfp4
from ernie_export.quantize.formats import Packed, dequantize, packing, stored_names
from ernie_export.quantize.gptq import REACH

if TYPE_CHECKING:
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.progress import Step
    from ernie_export.recipe import PartFormat, Parts, Recipe

Array = np.ndarray[Any, Any]
Piece = tuple[Array, Array, Array, Array]
"""Rows of the checkpoint's weights, of the nearest to them that can be stored, of those that are stored, and
how far from the nearest these may be."""
PIECE = 1 << 22
"""Weights that are compared at once."""
#: A weight half-way between two codes may be rounded to either: this much of a step is forgiven.
SLACK = 1e-3
#: Of the formats whose codes are small floats: the magnitudes of the codes, ascending.
LEVELS = {"fp8": fp8.LEVELS, "nvfp4": nvfp4.LEVELS}


@dataclass
class WeightError:
    """How far one stored tensor is from the checkpoint's; of experts, the worst of them."""

    name: str
    source: str
    """The checkpoint's name, or which expert of which layer."""
    relative_error: float
    misplaced: float
    """The part of the weights that are further from where they should be than rounding can have moved them."""
    block_error: float
    """The largest relative error of the weights that share a scale; of a float tensor, of a row."""


def compare_weights(
    folder: Path, graph: str, checkpoint: Checkpoint, recipe: Recipe, step: Step
) -> list[WeightError]:
    """Every tensor of every weight file, in the graph's order; the files are mapped, a matrix at a time is read.

    Raises:
        UserError: the graph has a weight that the checkpoint has not, or that does not lie in its file.
    """
    errors = []
    for file in read_layout(folder / graph):
        for stored in file.tensors:
            if not stored.name.endswith("scales"):
                try:
                    found = list(_compare(folder, file, stored, checkpoint, recipe))
                except (LookupError, ValueError) as error:
                    raise UserError(
                        f"{stored.name} in {folder / file.path} is no weight of this checkpoint ({error})",
                        "Check the bundle with `ernie-export verify`; if it is whole, build it again.",
                    ) from error
                errors.append(max(found, key=_badness))
                step.advance(stored.nbytes)
    return errors


def _badness(error: WeightError) -> tuple[float, float, float]:
    """What is not finite is worse than any number."""
    misplaced, *errors = error.misplaced, error.block_error, error.relative_error
    return misplaced, *(np.nan_to_num(value, nan=np.inf) for value in errors)


def _compare(
    folder: Path, file: WeightFile, stored: Stored, checkpoint: Checkpoint, recipe: Recipe
) -> Iterator[WeightError]:
    form = form_of(stored.name, recipe.parts)
    if form is None:
        want = plain(stored, checkpoint)
        got = _mapped(folder, file, stored)
        yield _error(stored.name, stored.name, [(want, want, got, np.zeros(()))], want.shape[-1])
        return
    calibrated = recipe.calibration is not None and not stored.name.startswith("embedding.")
    steps = 0.5 + REACH * calibrated + SLACK
    stored_values = stored_matrices(folder, file, stored, recipe.parts)
    for (source, matrix), packed in zip(matrices(stored.name, checkpoint), stored_values, strict=True):
        block = packing(form)[1] or matrix.shape[1]
        yield _error(stored.name, source, _pieces(matrix, packed, form, steps), block)


def stored_matrices(folder: Path, file: WeightFile, stored: Stored, parts: Parts) -> Iterator[Packed]:
    """A quantized or float matrix, or each of a stack of experts', as stored: mapped, not read."""
    form = form_of(stored.name, parts)
    assert form is not None
    names = {part.name: part for part in file.tensors}
    count = 1 + bool(packing(form)[0]) + (form.format == "nvfp4")
    arrays = [_mapped(folder, file, names[name]) for name in stored_names(stored.name)[:count]]
    if arrays[0].ndim == 2:
        arrays = [array[None] for array in arrays]
    for data, *scales in zip(*arrays, strict=True):
        yield Packed(data, *(scales or [None]))


def _pieces(matrix: Array, packed: Packed, form: PartFormat, steps: float) -> Iterator[Piece]:
    """A few rows at a time, so that the embedding of a large model does not stand in memory many times."""
    rows = max(1, PIECE // matrix.shape[1])
    for at in range(0, len(matrix), rows):
        want = matrix[at : at + rows].astype(np.float32)
        scales = None if packed.scales is None else packed.scales[at : at + rows]
        some = Packed(packed.data[at : at + rows], scales, packed.matrix_scale)
        nearest, allowed = _nearest(some, want, form, steps)
        yield want, nearest, dequantize(some, form), allowed


def _mapped(folder: Path, file: WeightFile, stored: Stored) -> Array:
    return np.memmap(folder / file.path, stored.dtype, "r", stored.offset, stored.shape)


def _nearest(packed: Packed, matrix: Array, form: PartFormat, steps: float) -> tuple[Array, Array]:
    """The nearest to each weight that its scale can reach, and how far from there it may be, [N,K] each."""
    if packed.scales is None:
        return matrix, np.abs(matrix.astype(packed.data.dtype).astype(np.float32) - matrix)
    bits, scales = packing(form)[0], formats.factors_of(packed, form, matrix.shape[1])
    if form.format in LEVELS:
        magnitudes = formats.codes_of(packed, form) & (2 ** (bits - 1) - 1)
        return _nearest_small_float(matrix, magnitudes, scales, LEVELS[form.format])
    ends = scales * -(2 ** (bits - 1)), scales * (2 ** (bits - 1) - 1)
    return np.clip(matrix, np.minimum(*ends), np.maximum(*ends)), np.abs(scales) * steps


def _nearest_small_float(
    matrix: Array, magnitudes: Array, scales: Array, levels: Array
) -> tuple[Array, Array]:
    """`_nearest` for codes of these magnitudes: half the gap to the next level, on the side where the weight lies."""
    end = levels[-1] * scales
    last = len(levels) - 1
    places = np.minimum(magnitudes, last)  # a code above is NaN, and near to nothing
    outward = np.abs(matrix) > levels[places] * scales
    others = levels[np.clip(np.where(outward, places + 1, places.astype(np.int16) - 1), 0, last)]
    return np.clip(matrix, -end, end), np.abs(others - levels[places]) * scales * (0.5 + SLACK)


def _error(name: str, source: str, pieces: Iterable[Piece], block: int) -> WeightError:
    near = weights = 0
    squares = np.zeros(2)  # of what is off, and of what is wanted
    worst = 0.0
    for want, nearest, got, allowed in pieces:
        got = got.astype(np.float32)
        near += int((np.abs(got - nearest) <= allowed).sum())  # a NaN is never near
        weights += want.size
        by_block = [
            np.linalg.norm(values.reshape(-1, block), axis=1).astype(np.float64)
            for values in (got - want, want)
        ]
        squares += [np.square(norms).sum() for norms in by_block]
        worst = float(np.max([worst, _quotient(*by_block).max()]))  # NaN stays NaN
    return WeightError(name, source, float(_quotient(*np.sqrt(squares))), 1 - near / weights, worst)


def _quotient(off: Array, size: Array) -> Array:
    """off / size; where there is nothing that it could be measured by, 0 if nothing is off."""
    nothing: Array = np.where(off == 0, 0.0, np.inf)
    return np.divide(off, size, out=nothing, where=size > 0)


def weight_metrics(errors: list[WeightError]) -> dict[str, float]:
    return {
        "weights.misplaced": max(error.misplaced for error in errors),
        "weights.relative_error": float(np.max([error.relative_error for error in errors])),
        "weights.block_error": float(np.max([error.block_error for error in errors])),
    }
