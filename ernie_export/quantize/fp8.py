"""FP8: E4M3 codes, and one fp32 scale for each row of a matrix.

E4M3 is the OCP's (Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433, and the OFP8
specification; `fn` in ONNX and ml_dtypes): a sign, four bits of exponent with bias 7, three of mantissa.
Exponent 0 holds the multiples of 2⁻⁹ below 2⁻⁶; there is no infinity, S.1111.111 is NaN, and the largest
number is 448 = S.1111.110.  Rounding is to nearest, ties to even.

A row's scale is max|w| / 448, code = E4M3(w / scale), weight = code · scale in fp32.  A float keeps its
relative precision whatever its neighbours are, so a scale for fewer weights gains next to nothing, and a
scale that is no block's costs a runtime one multiplication a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

E4M3: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST = np.float32(448)
#: The numbers that the codes stand for; those of 0 … 126 are the magnitudes, ascending.
NUMBERS = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
LEVELS = NUMBERS[:127]


def quantize_rows(weight: Array) -> tuple[Array, Array]:
    """weight [N,K] float32, finite → codes [N,K] E4M3, scales [N,1] fp32."""
    scales = np.abs(weight).max(axis=1, keepdims=True, initial=0) / LARGEST
    # A row of nothing but zeros, or of what no scale is small enough for, is zeros.
    numbers = np.divide(weight, scales, out=np.zeros_like(weight), where=scales > 0)
    # Beyond 448 E4M3 has NaN alone, and a quotient may be rounded up past it.
    return np.clip(numbers, -LARGEST, LARGEST).astype(E4M3), scales


def dequantize_rows(codes: Array, scales: Array) -> Array:
    return codes.astype(np.float32) * scales
