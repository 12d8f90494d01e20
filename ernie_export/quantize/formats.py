"""The stored forms of a weight matrix, and how a matrix is brought into them.

Rows of K are contiguous.  An integer format stores, for each block of a row, codes and one scale:
weight = scale · (code − 2^(bits − 1)), codes packed low bits first (INT4: two a byte, the low
nibble first), scales fp16.  The scale may be negative: the codes reach one step further below zero
than above it, so the sign is chosen that spends this step on the side of the largest weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ernie_export.recipe import PartFormat

    Array = NDArray[Any]

BITS = {"int8": 8, "int4": 4}
FLOATS: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}
SCALES = np.dtype(np.float16)

#: Scales tried for a block, as parts of the one that just reaches its largest weight.
SEARCHED = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (1.0,)}
#: Weights quantized at once: in float32 they fill a part of the second-level cache.
PIECE = 1 << 16


class NotFinite(ValueError):
    """The matrix holds NaN or infinity, or a number outside the format's range."""


@dataclass(frozen=True)
class Packed:
    data: Array
    """u8 [N, K·bits/8], or the weights themselves [N, K]."""
    scales: Array | None
    """fp16 [N, K/block]; None for a float format."""


def packing(form: PartFormat) -> tuple[int, int]:
    """(bits, block size) of an integer format, (0, 0) of a float one."""
    return BITS.get(form.format, 0), form.block_size or 0


def quantize(weight: Array, form: PartFormat) -> Packed:
    """weight [N, K] of any float dtype → its stored form.

    Raises:
        NotFinite: a weight is NaN or infinite, or overflows the stored dtype.
    """
    bits, block_size = packing(form)
    if not bits:
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(weight, dtype=FLOATS[form.format])
        if not np.isfinite(stored).all():
            raise NotFinite(form.format)
        return Packed(stored, None)
    from ernie_export.quantize.blocks import quantize_blocks

    rows, columns = weight.shape
    data = np.empty((rows, columns * bits // 8), np.uint8)
    scales = np.empty((rows, columns // block_size), SCALES)
    parts = np.array(SEARCHED[bits], np.float32)
    step = max(1, PIECE // columns)
    for begin in range(0, rows, step):
        piece = slice(begin, begin + step)
        blocks = weight[piece].astype(np.float32, order="C").reshape(-1, block_size)
        factors = np.empty(len(blocks), np.float32)
        codes = data[piece].reshape(len(blocks), -1)
        if not quantize_blocks(blocks, bits, parts, codes, factors):
            raise NotFinite(form.format)
        scales[piece] = factors.reshape(-1, columns // block_size)
    return Packed(data, scales)


def representable(scale: Array) -> Array:
    """The scale as it will be read back from fp16, float32."""
    limit = float(np.finfo(SCALES).max)
    return np.clip(scale, -limit, limit).astype(SCALES).astype(np.float32)


def nearest(blocks: Array, scale: Array, half: int) -> Array:
    """The levels, −half … half − 1, nearest to the weights; float32. A scale of 0 gives level 0."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return np.clip(np.rint(blocks * inverse), -half, half - 1)


def pack(codes: Array, bits: int) -> Array:
    """codes u8 [N, K] below 2^bits → u8 [N, K·bits/8], low bits first."""
    each = 8 // bits
    if each == 1:
        return codes
    parts = codes.reshape(len(codes), codes.shape[1] // each, each)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(parts << shifts, axis=-1)


def unpack(data: Array, bits: int) -> Array:
    """The inverse of `pack`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (data[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*data.shape[:-1], data.shape[-1] * (8 // bits))


def dequantize(packed: Packed, form: PartFormat) -> Array:
    """The weights that a stored form stands for, [N, K] float32."""
    bits, block_size = packing(form)
    if packed.scales is None:
        return packed.data.astype(np.float32)
    levels = unpack(packed.data, bits).astype(np.float32) - 2 ** (bits - 1)
    blocks = levels.reshape(len(levels), -1, block_size)
    return (blocks * packed.scales.astype(np.float32)[..., None]).reshape(levels.shape)
