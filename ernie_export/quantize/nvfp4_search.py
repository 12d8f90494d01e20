"""The search for the scales of NVFP4's blocks, compiled as blocks.py's is.

NVIDIA's rule is max|w| / 6.  Here that is the first of several that are tried: the gap between 4 and 6 is so wide
that the others may be met better where the largest weight lies lower, or beyond 6.  The scale with the least
squared error is taken, the first of equals: never more error than by NVIDIA's rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.quantize.blocks import compiled
from ernie_export.quantize.fp8 import LARGEST as LARGEST_SCALE
from ernie_export.quantize.nvfp4 import BLOCK, LARGEST, LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

F32 = np.float32
#: Where a block's largest weight is tried to lie.
TOPS = np.array([LARGEST, 8, 7.5, 7, 6.5, 5.5, 5, 4.5, 4, 3.5, 3], np.float32)
SMALLEST_EXPONENT, FRACTION = 127 - 6, 3
"""E4M3: the exponent (as float32 writes it) below which bits are lost, bits behind the point."""


def _nearest_scale(scale: Any) -> Any:
    """The E4M3 nearest to a float32 that is not negative, 448 at most."""
    exponent: Any = max(F32(scale).view(np.int32) >> 23, SMALLEST_EXPONENT)
    step = np.int32((exponent - FRACTION) << 23).view(np.float32)
    return F32(min(np.rint(scale / step) * step, LARGEST_SCALE))


def _magnitude(number: Any) -> Any:
    """The code, 0 … 7, nearest to a number that is not negative.

    Below 2, from 2 to 4 and from 4 to 6 the levels are even apart, so that rint's even is the even code.
    """
    if number < F32(2):
        return np.int32(np.rint(number + number))
    if number < F32(4):
        return np.int32(np.rint(number)) + np.int32(2)
    return np.int32(np.rint(min(number, LARGEST) * F32(0.5))) + np.int32(4)


def _best_scale(block: Array, matrix_scale: Any) -> Any:
    """|w − s·q|² without the |w|² that all have is s · (s·⟨q, q⟩ − 2·⟨w, q⟩)."""
    largest = F32(0)
    for at in range(BLOCK):
        largest = max(largest, abs(block[at]))
    best, least = F32(0), 0.0
    for top in TOPS:
        stored = nearest_scale(F32(largest / top) / matrix_scale)
        scale = stored * matrix_scale
        if scale > F32(0):
            square = product = 0.0
            for at in range(BLOCK):
                level = np.float64(LEVELS[magnitude(abs(block[at]) / scale)])
                square += level * level
                product += np.float64(abs(block[at])) * level
            error = scale * (scale * square - 2.0 * product)
            if error < least:
                best, least = stored, error
    return best


def _quantize(blocks: Array, matrix_scale: Any, codes: Array, scales: Array) -> None:
    for number in range(len(blocks)):
        block = blocks[number]
        scales[number] = best_scale(block, matrix_scale)
        scale = scales[number] * matrix_scale
        for at in range(BLOCK):
            code = np.int32(0)
            if scale > F32(0):
                code = magnitude(abs(block[at]) / scale)
            if block[at] < F32(0):
                code |= np.int32(8)
            codes[number, at // 2] |= np.uint8(code << np.int32(4 * (at % 2)))


nearest_scale = compiled(_nearest_scale)
magnitude = compiled(_magnitude)
best_scale = compiled(_best_scale)
_run = compiled(_quantize)


def quantize(blocks: Array, matrix_scale: np.float32, codes: Array, scales: Array) -> None:
    """blocks [X,16] float32, finite; a positive scale of the matrix → codes u8 [X,8], zeros before; scales [X]
    float32 that E4M3 holds."""
    _run(blocks, matrix_scale, codes, scales)
