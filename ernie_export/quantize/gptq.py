"""Rounding that minds what a matrix is used for: GPTQ (Frantar et al. 2022, arXiv 2210.17323).

Rounding to nearest makes the error of the weights small, e = w − ŵ.  GPTQ makes the error of the
output small, Σ (e·x)² = e H eᵀ over the inputs x that calibration saw, with H = Σ x xᵀ: column after
column is rounded, and what its rounding does to the output is made good by the columns still to come.

It is written here as LDLQ (Chee et al. 2023, arXiv 2307.13304, theorem 6: the same codes), which needs
one Cholesky decomposition and no inverse.  With H = R·Rᵀ, R upper triangular,

    e H eᵀ = |e·R|² = Σ_k R_kk² (e_k + Σ_{j<k} e_j R_jk / R_kk)²,

so column k is rounded as if it were w_k + Σ_{j<k} e_j R_jk / R_kk, where e_j are the errors made before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.quantize.formats import Packed, nearest, pack, packing, quantize, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ernie_export.recipe import PartFormat

    Array = NDArray[Any]

#: Added to the diagonal of H, as a part of its mean, and K / tokens beside it: what calibration did not
#: see matters too, and more where it saw little.  With 0.01 alone, experts of ernie-nano erred up to six
#: times more than rounded to nearest on text they were not calibrated on, until they had seen 4·K tokens:
#: their inputs are now and then very large.  With K / tokens they err less from 64 tokens on.
DAMPING = 0.01
#: Most that a code is away from the nearest one: enough for nearly all that GPTQ gains, and a wrong
#: weight can still be told from a calibrated one.
REACH = 1
#: Rows rounded at once (no row depends on another), and columns whose errors are passed on together.
ROWS, COLUMNS = 4096, 128


@dataclass(frozen=True)
class Calibrated:
    packed: Packed
    error: float
    """Σ e H eᵀ over the rows, with the damped H."""
    error_nearest: float
    """The same of rounding to nearest."""


def gptq(weight: Array, hessian: Array, tokens: int, form: PartFormat) -> Calibrated:
    """weight [N, K] of any float dtype, hessian [K, K] of so many tokens → the stored form, in an integer format.

    The columns that matter most are rounded first, while there are many left to make it good.  Every
    block has the scale that rounding to nearest gives it.  A row that comes out worse than rounded to
    nearest, which greed can do, keeps the nearest codes.

    Raises:
        NotFinite: a weight is NaN or infinite.
        ValueError: the damped H is not positive definite, or holds NaN or infinity.
    """
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    root = triangular_root(damped(hessian, tokens)[np.ix_(order, order)])
    bits, block = packing(form)
    half = 2 ** (bits - 1)
    packed = quantize(weight, form)
    assert packed.scales is not None
    error = error_nearest = 0.0
    for begin in range(0, len(weight), ROWS):
        piece = slice(begin, begin + ROWS)
        matrix = weight[piece].astype(np.float32)[:, order]
        steps = np.repeat(packed.scales[piece].astype(np.float32), block, axis=1)[:, order]
        closest = (unpack(packed.data[piece], bits).astype(np.float32) - half)[:, order]
        levels, errors = rounded(matrix, closest, steps, root, half)
        errors_nearest = np.square((matrix - closest * steps) @ root).sum(axis=1)
        worse = errors >= errors_nearest
        levels[worse] = closest[worse]
        codes = np.empty(matrix.shape, np.uint8)
        codes[:, order] = levels + half
        packed.data[piece] = pack(codes, bits)
        error += float(np.minimum(errors, errors_nearest).sum(dtype=np.float64))
        error_nearest += float(errors_nearest.sum(dtype=np.float64))
    return Calibrated(packed, error, error_nearest)


def damped(hessian: Array, tokens: int) -> Array:
    """H with something on its diagonal, float64; the identity where nothing was seen."""
    result = hessian.astype(np.float64)
    added = (DAMPING + len(result) / max(tokens, 1)) * np.diagonal(result).mean()
    result[np.diag_indices_from(result)] += added if added != 0 else 1.0
    return result


def triangular_root(hessian: Array) -> Array:
    """R [K, K] float32, upper triangular, with R·Rᵀ = H: the Cholesky decomposition from the other end."""
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    if not np.isfinite(lower).all():  # LAPACK lets NaN through
        raise ValueError("H holds NaN or infinity")
    return np.ascontiguousarray(lower[::-1, ::-1], np.float32)


def rounded(weight: Array, closest: Array, steps: Array, root: Array, half: int) -> tuple[Array, Array]:
    """Round column after column, in the order given.

    Args:
        weight, closest, steps: [N, K] float32: the weights, their nearest levels, the scales.
        root: [K, K], R of the file's first lines.

    Returns:
        levels [N, K] float32 and e H eᵀ of each row, [N].
    """
    columns = weight.shape[1]
    diagonal = np.diagonal(root)
    passed_on = root / diagonal
    lowest, highest = np.maximum(closest - REACH, -half), np.minimum(closest + REACH, half - 1)
    # Columns are worked on one by one, so they lie contiguous here.
    weight, steps, lowest, highest = (np.ascontiguousarray(a.T) for a in (weight, steps, lowest, highest))
    levels, errors = np.empty_like(weight), np.zeros_like(weight)
    total = np.zeros(weight.shape[1], np.float32)
    for begin in range(0, columns, COLUMNS):
        end = min(begin + COLUMNS, columns)
        wanted = weight[begin:end] + passed_on[:begin, begin:end].T @ errors[:begin]
        for k in range(begin, end):
            target = wanted[k - begin] + passed_on[begin:k, k] @ errors[begin:k]
            levels[k] = np.clip(nearest(target, steps[k], half), lowest[k], highest[k])
            value = levels[k] * steps[k]
            errors[k] = weight[k] - value
            total += np.square(diagonal[k] * (target - value))
    return np.ascontiguousarray(levels.T), total
