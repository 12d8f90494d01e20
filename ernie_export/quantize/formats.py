"""The stored forms of a weight matrix, and how a matrix is brought into them.

Rows of K are contiguous.  fp8.py and nvfp4.py say what those two are.  An integer format stores, for
each block of a row, codes and one scale: weight = scale · (code − 2^(bits − 1)), codes packed low bits
first (INT4: two a byte, the low nibble first), scales fp16.  The scale may be negative: the codes reach
one step further below zero than above it, so the sign is chosen that spends this step on the side of
the largest weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ernie_export.recipe import PartFormat

    Array = NDArray[Any]

#: Of the integer formats, whose block size a recipe says.
BITS = {"int8": 8, "int4": 4}
#: Formats whose codes are small floats: bits, and the weights that share a scale, 0 where those of a row do.
SMALL_FLOATS = {"fp8": (8, 0), "nvfp4": (4, 16)}
FLOATS: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}
BYTES, SCALES = np.dtype(np.uint8), np.dtype(np.float16)

#: Scales tried for a block, as parts of the one that just reaches its largest weight.
SEARCHED = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (1.0,)}
#: Weights quantized at once: in float32 they fill a part of the second-level cache.
PIECE = 1 << 16


class NotFinite(ValueError):
    """The matrix holds NaN or infinity, or a number outside the format's range."""


@dataclass(frozen=True)
class Packed:
    data: Array
    """u8 [N, K·bits/8], for fp8 E4M3 [N, K], or the weights themselves [N, K]."""
    scales: Array | None
    """fp16 [N, K/block]; for fp8 fp32 [N, 1], for nvfp4 E4M3 [N, K/16]; None for fp32 and fp16."""
    matrix_scale: Array | None = None
    """fp32 [1, 1], for nvfp4 alone."""


def packing(form: PartFormat) -> tuple[int, int]:
    """(bits, block size) of a format with scales, block size 0 where a scale is a row's; (0, 0) of fp32 and fp16."""
    return SMALL_FLOATS.get(form.format) or (BITS.get(form.format, 0), form.block_size or 0)


def stored_names(name: str) -> tuple[str, str, str]:
    """Of a matrix, of its scales and of the matrices' own scales, as far as its format has them."""
    stem = name.removesuffix("weight") if name.rpartition(".")[2] == "weight" else f"{name}_"
    return name, f"{stem}scales", f"{stem}matrix_scales"


def stored_as(form: PartFormat, shape: tuple[int, ...]) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtype and shape of what weights [..., N, K] are stored as: of the data, of the scales and of the matrices' own
    scales, as far as the format has them.

    Raises:
        ValueError: K is no multiple of the block size.
    """
    *outer, rows, columns = shape
    bits, block_size = packing(form)
    if not bits:
        return [(FLOATS[form.format], shape)]
    if columns % (block_size or 1):
        raise ValueError(block_size)
    data = (*outer, rows, columns * bits // 8)
    if form.format in BITS:
        return [(BYTES, data), (SCALES, (*outer, rows, columns // block_size))]
    from ernie_export.quantize.fp8 import E4M3

    single = np.dtype(np.float32)
    if form.format == "fp8":
        return [(E4M3, data), (single, (*outer, rows, 1))]
    return [(BYTES, data), (E4M3, (*outer, rows, columns // block_size)), (single, (*outer, 1, 1))]


def matrix_scale(weight: Array, form: PartFormat) -> Array | None:
    """The scale of a whole matrix [N, K], fp32 [1, 1], where its format has one."""
    if form.format != "nvfp4":
        return None
    from ernie_export.quantize import nvfp4

    return nvfp4.matrix_scale(weight)


def quantize(weight: Array, form: PartFormat, scale: Array | None = None) -> Packed:
    """weight [N, K] of any float dtype → its stored form; `scale`: that of the matrix, if these are rows of one.

    Raises:
        NotFinite: a weight is NaN or infinite, or overflows the stored dtype.
    """
    if form.format in SMALL_FLOATS:
        return _small_floats(weight, form, scale)
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


def _small_floats(weight: Array, form: PartFormat, scale: Array | None) -> Packed:
    from ernie_export.quantize import fp8, nvfp4

    numbers = weight.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise NotFinite(form.format)
    if form.format == "fp8":
        return Packed(*fp8.quantize_rows(numbers))
    scale = nvfp4.matrix_scale(numbers) if scale is None else scale
    return Packed(*nvfp4.quantize_blocks(numbers, scale), scale)


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


def codes_of(packed: Packed, form: PartFormat) -> Array:
    """Of a format whose codes are small floats, u8 [N, K]."""
    return unpack(packed.data.view(np.uint8), packing(form)[0])


def factors_of(packed: Packed, form: PartFormat, columns: int) -> Array:
    """What a weight's number is multiplied by, of a format with scales: float32 [N, K]."""
    assert packed.scales is not None
    scales = packed.scales.astype(np.float32)
    if packed.matrix_scale is not None:
        scales = scales * packed.matrix_scale
    return np.repeat(scales, packing(form)[1] or columns, axis=1)


def dequantize(packed: Packed, form: PartFormat) -> Array:
    """The weights that a stored form stands for, [N, K] float32."""
    bits, block_size = packing(form)
    if packed.scales is None:
        return packed.data.astype(np.float32)
    if form.format in SMALL_FLOATS:
        from ernie_export.quantize import fp8, nvfp4

        if packed.matrix_scale is None:
            return fp8.dequantize_rows(packed.data, packed.scales)
        return nvfp4.dequantize_blocks(unpack(packed.data, bits), packed.scales, packed.matrix_scale)
    levels = unpack(packed.data, bits).astype(np.float32) - 2 ** (bits - 1)
    blocks = levels.reshape(len(levels), -1, block_size)
    return (blocks * packed.scales.astype(np.float32)[..., None]).reshape(levels.shape)
