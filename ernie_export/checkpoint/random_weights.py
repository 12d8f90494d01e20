"""Random weights that look like trained ones to whatever quantizes, multiplies or routes with them.

Real are: the scale of each kind of layer; rows of different scale; channels of the residual stream
that are far larger than the others, in what writes to it and what reads from it; router logits that
spread; a correction bias that changes some choices.  Nothing is learned, so nothing about quality
can be said of them.

Every number is drawn from a table of 4096 quantiles of the normal distribution, which bf16 hardly
tells from the real one, by 12 bits of a stream that depends on the seed, the tensor's name and the
place alone: not on the number of threads, nor on how many layers the model has.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ernie_export.checkpoint.layout import part_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ernie_export.checkpoint.config import ErnieConfig

    Array = NDArray[Any]

QUANTILE_BITS = 12
ROW_SCALES = 16
#: log-normal spread of the rows' scales
ROW_SPREAD = 0.25
#: weights made at once
PIECE = 1 << 19
BF16, FP32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)


def dtype_of(name: str) -> np.dtype[Any]:
    """As published: bf16, the router and its bias fp32."""
    return FP32 if part_of(name) == "router" else BF16


@dataclass(frozen=True)
class Statistics:
    """mean + deviation · row scale · N(0, 1); the outlier channels so many times that."""

    deviation: float
    mean: float = 0.0
    outlier_rows: float = 1.0
    outlier_columns: float = 1.0


class RandomWeights:
    def __init__(self, config: ErnieConfig, seed: int, depth: int):
        """`depth`: layers of the published model; what writes to the residual stream is scaled by it."""
        self.config = config
        self.seed = seed
        self.depth = depth

    def statistics(self, name: str, columns: int) -> Statistics:
        """By the published name of a tensor; `columns` is its last dimension."""
        if name.endswith("e_score_correction_bias"):
            return Statistics(0.2 / self.config.moe_num_experts)
        part, unit = part_of(name), 1 / math.sqrt(columns)  # keeps unit activations at unit size
        if part == "router":
            return Statistics(1.5 * unit)
        if part == "norms":
            return Statistics(0.1, mean=1.0, outlier_columns=0.25)
        if part in ("embedding", "head"):
            return Statistics(1.5 * unit, outlier_columns=8.0 if part == "embedding" else 1.0)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return Statistics(unit / math.sqrt(2 * self.depth), outlier_rows=8.0)
        return Statistics(unit, outlier_columns=2.0)

    @cached_property
    def outliers(self) -> Array:
        """Which channels of the residual stream are large, in every layer."""
        hidden = self.config.hidden_size
        count = max(1, hidden // 512)
        return np.sort(np.argsort(self._stream("outliers", 0).random_raw(hidden))[:count])

    def piece(self, name: str, begin: int, end: int, columns: int) -> Array:
        """[end − begin, columns], those rows of a tensor; `begin` is a multiple of `rows_at_once`."""
        kind = self.statistics(name, columns)
        rows = end - begin
        words = self._stream(name, begin // rows_at_once(columns)).random_raw(-(-rows * columns // 4))
        codes = words.view(np.uint16)[: rows * columns].reshape(rows, columns)
        # A row's first number has four bits to spare: they choose its scale.
        row_scales = codes[:, :1] & np.uint16(0xF000)
        index = (codes & np.uint16(0x0FFF)) | row_scales

        def take(factor: float, index: Array) -> Array:
            table = _table(dtype_of(name), kind.mean * factor, kind.deviation * factor)
            return np.take(table, index, mode="clip")

        values = take(1.0, index)
        if kind.outlier_columns != 1.0:
            values[:, self.outliers] = take(kind.outlier_columns, index[:, self.outliers])
        if kind.outlier_rows != 1.0:
            here = self.outliers[(self.outliers >= begin) & (self.outliers < end)] - begin
            values[here] = take(kind.outlier_rows, index[here])
        return values.view(dtype_of(name))

    def _stream(self, name: str, place: int) -> np.random.SFC64:
        of_name = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
        return np.random.SFC64(np.random.SeedSequence([self.seed, of_name, place]))


def rows_at_once(columns: int) -> int:
    return max(1, PIECE // columns)


@lru_cache(maxsize=64)
def _table(dtype: np.dtype[Any], mean: float, deviation: float) -> Array:
    """[16 row scales · 4096 quantiles] as plain integers: numpy takes those without the interpreter's lock."""
    scales = np.exp(ROW_SPREAD * _quantiles(ROW_SCALES))
    values = mean + deviation * scales[:, None] * _quantiles(1 << QUANTILE_BITS)
    return values.astype(np.float32).astype(dtype).ravel().view(f"u{dtype.itemsize}")


@lru_cache
def _quantiles(count: int) -> Array:
    """The middles of `count` equally likely parts of N(0, 1)."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
