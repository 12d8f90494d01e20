"""The search for each block's scale, compiled: it is what a build spends its time on.

A block stays in the first-level cache while all its scales are tried.  Sums are made in float64 and
rounded once: a product of a bf16 weight and a level has 12 bits, so they are exact in any order, and
the stored bytes are the same on every processor.  Numba keeps the machine code beside this file, or in
the user's cache folder, for the next run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

F32 = np.float32
ZERO, ONE = F32(0), F32(1)
ABSOLUTE = 0x7FFFFFFF
INFINITY = 0x7F800000
"""Of a float32's bits: all but the sign, and infinity; what is larger is NaN."""
LARGEST = F32(65504)
SMALLEST_EXPONENT, FP16_FRACTION = 127 - 14, 10
"""fp16: the largest number, the exponent (as float32 writes it) below which bits are lost, bits behind the point."""

# Sums may be made in any order, so that they are made several at a time.
_ANY_ORDER = {"reassoc", "nnan", "ninf", "nsz"}


def compiled(function: Callable[..., Any]) -> Any:
    """Compiled at its first call, and kept for the next run where some folder can be written."""
    try:
        return numba.njit(nogil=True, fastmath=_ANY_ORDER, cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(nogil=True, fastmath=_ANY_ORDER)(function)


def _representable(scale: Any) -> Any:
    """The float32 that is read back when `scale` is stored as fp16, the largest of them at most."""
    exponent: Any = max(F32(scale).view(np.int32) >> 23 & 0xFF, SMALLEST_EXPONENT)
    step = np.int32((exponent - FP16_FRACTION) << 23).view(np.float32)
    stored = np.rint(scale / step) * step
    return F32(min(max(stored, -LARGEST), LARGEST))


def _inverse(scale: Any) -> Any:
    """A scale of 0 makes every level 0."""
    return ONE / scale if scale != ZERO else ZERO


def _level(weight: Any, inverse: Any, low: Any, high: Any) -> Any:
    return np.rint(min(max(weight * inverse, low), high))


def _fitted(block: Array, scale: Any, low: Any, high: Any) -> Any:
    """⟨w, q⟩ and ⟨q, q⟩ for the levels q of `scale`: w = s·q fits best at s = ⟨w, q⟩ / ⟨q, q⟩."""
    inverse, square, product = inverse_of(scale), ZERO, 0.0
    for at in range(block.size):
        level = level_of(block[at], inverse, low, high)
        square += level * level
        product += np.float64(block[at] * level)
    return product, np.float64(square)


def _largest(bits: Array) -> Any:
    """The largest magnitude, as a float32's bits without the sign."""
    largest = np.int32(0)
    for at in range(bits.size):
        largest = max(largest, bits[at] & np.int32(ABSOLUTE))
    return largest


def _best_scale(block: Array, largest: Any, parts: Array, low: Any, high: Any) -> Any:
    """`largest`: the first of the largest weights, with its sign."""
    best, most = ZERO, 0.0
    for part in parts:
        product, square = fitted(block, representable(largest * (part / low)), low, high)
        if product * product > most * square:
            best, most = representable(F32(product / square)), product * product / square
    return best


def _store(block: Array, scale: Any, low: Any, high: Any, codes: Array) -> None:
    inverse = inverse_of(scale)
    if codes.size == block.size:
        for at in range(block.size):
            codes[at] = np.uint8(np.int32(level_of(block[at], inverse, low, high) - low))
        return
    for at in range(codes.size):
        first = np.int32(level_of(block[2 * at], inverse, low, high) - low)
        second = np.int32(level_of(block[2 * at + 1], inverse, low, high) - low)
        codes[at] = np.uint8(first | second << np.int32(4))


def _quantize(blocks: Array, half: int, parts: Array, codes: Array, scales: Array) -> bool:
    low, high = F32(-half), F32(half - 1)
    bits = blocks.view(np.int32)
    for number in range(len(blocks)):
        block = blocks[number]
        largest = largest_of(bits[number])
        if largest >= INFINITY:
            return False
        at = 0
        while bits[number, at] & np.int32(ABSOLUTE) != largest:
            at += 1
        scale = best_scale(block, block[at], parts, low, high)
        store(block, scale, low, high, codes[number])
        scales[number] = scale
    return True


representable = compiled(_representable)
inverse_of = compiled(_inverse)
level_of = compiled(_level)
fitted = compiled(_fitted)
largest_of = compiled(_largest)
best_scale = compiled(_best_scale)
store = compiled(_store)
_run = compiled(_quantize)


def quantize_blocks(blocks: Array, bits: int, parts: Array, codes: Array, scales: Array) -> bool:
    """blocks [X, block] float32 → codes u8 [X, block·bits/8], packed, and scales [X] float32 that fp16 holds.

    For each part the scale is tried that reaches so much of the block's largest weight: the weights w are
    rounded to its nearest levels q, from −2^(bits−1) to 2^(bits−1) − 1. Of s·q, with any s, s = ⟨w, q⟩ / ⟨q, q⟩
    is nearest to w, and |w − s·q|² = |w|² − ⟨w, q⟩² / ⟨q, q⟩. The part with the least of it wins, the first of
    equals; its s is rounded to fp16, and the codes are the levels nearest to that. False, and codes and scales
    mean nothing, if a weight is NaN or infinite.
    """
    return bool(_run(blocks, 2 ** (bits - 1), parts, codes, scales))
