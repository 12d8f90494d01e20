"""NVFP4: E2M1 codes two a byte, an E4M3 scale for each 16 of a row, and one fp32 scale for the matrix.

As NVIDIA defines it ("Introducing NVFP4 for Efficient and Accurate Low-Precision Inference", and the
quantized types of TensorRT's documentation): the matrix's scale is max|w| / (6 · 448), so that the largest
block's own is 448, the largest E4M3 (fp8.py); weight = code · (block scale · matrix scale) in fp32.  E2M1 is the
OCP's (Microscaling Formats 1.0): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, a sign, two bits of exponent with
bias 1, one of mantissa; rounding is to nearest, ties to even.  The low nibble is the first of two.

Which scale a block has is not part of the format: nvfp4_search.py chooses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ernie_export.quantize.formats import SMALL_FLOATS
from ernie_export.quantize.fp8 import E4M3
from ernie_export.quantize.fp8 import LARGEST as LARGEST_SCALE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

BLOCK = SMALL_FLOATS["nvfp4"][1]
E2M1: np.dtype[Any] = np.dtype(ml_dtypes.float4_e2m1fn)
LARGEST = np.float32(6)
#: The numbers that the codes 0 … 15 stand for; the first 8 are the magnitudes, ascending.
NUMBERS = np.arange(16, dtype=np.uint8).view(E2M1).astype(np.float32)
LEVELS = NUMBERS[:8]


def matrix_scale(weight: Array) -> Array:
    """The scale of a matrix [N,K] of any float dtype, fp32 [1,1]; 0 where there is nothing that it could scale."""
    largest = max((np.abs(row.astype(np.float32)).max(initial=0) for row in weight), default=0)
    return np.array([[largest / (LARGEST * LARGEST_SCALE)]], np.float32)


def quantize_blocks(weight: Array, scale: Array) -> tuple[Array, Array]:
    """weight [N,K] float32, finite; scale [1,1] fp32, the matrix's → codes u8 [N,K/2], scales E4M3 [N,K/16]."""
    from ernie_export.quantize.nvfp4_search import quantize

    rows, columns = weight.shape
    codes, scales = np.zeros((rows, columns // 2), np.uint8), np.zeros((rows, columns // BLOCK), np.float32)
    if scale[0, 0] > 0:
        blocks = np.ascontiguousarray(weight).reshape(-1, BLOCK)
        quantize(blocks, scale[0, 0], codes.reshape(len(blocks), -1), scales.reshape(-1))
    return codes, scales.astype(E4M3)


def dequantize_blocks(codes: Array, scales: Array, scale: Array) -> Array:
    """codes u8 [N,K], 0 … 15; scales E4M3 [N,K/16]; scale [1,1] → [N,K] float32."""
    return NUMBERS[codes] * np.repeat(scales.astype(np.float32) * scale, BLOCK, axis=1)
