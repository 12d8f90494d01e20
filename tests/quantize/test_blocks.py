"""The compiled search against the same in numpy, one pass after the other, all bits of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.quantize import formats
from ernie_export.quantize.blocks import quantize_blocks, representable

FP16 = np.float16(np.finfo(np.float16).max)


def search(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """blocks [X, block] float32 → codes u8 [X, block], scales fp16 [X]."""
    half = 2 ** (bits - 1)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    best, most = np.zeros((len(blocks), 1), np.float32), np.zeros(len(blocks))
    for part in np.array(formats.SEARCHED[bits], np.float32):
        levels = formats.nearest(blocks, formats.representable(largest * (part / np.float32(-half))), half)
        square = (levels * levels).sum(axis=1, dtype=np.float64)
        product = (blocks * levels).sum(axis=1, dtype=np.float64)
        better = product * product > most * square
        most[better] = product[better] * product[better] / square[better]
        best[better] = formats.representable((product[better] / square[better]).astype(np.float32)[:, None])
    return (formats.nearest(blocks, best, half) + half).astype(np.uint8), best[:, 0].astype(np.float16)


def run(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    codes = np.empty((len(blocks), blocks.shape[1] * bits // 8), np.uint8)
    scales = np.empty(len(blocks), np.float32)
    assert quantize_blocks(blocks, bits, np.array(formats.SEARCHED[bits], np.float32), codes, scales)
    return formats.unpack(codes, bits), scales.astype(np.float16)


@settings(deadline=None)  # the first call compiles
@given(
    st.sampled_from([4, 8]),
    st.sampled_from([32, 64, 128]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3]),
    st.integers(-30, 25),
    st.sampled_from([0.0, 0.5, 0.98]),
)
def test_every_bit_is_that_of_the_plain_search(
    bits: int, block: int, seed: int, power: int, exponent: int, zeros: float
) -> None:
    """Also where scales are too small or too large for fp16, and where most weights are zero."""
    random = np.random.default_rng(seed)
    blocks = (random.standard_normal((64, block)) ** power * 2.0**exponent).astype(np.float32)
    blocks[random.random(blocks.shape) < zeros] = 0
    blocks = (blocks.view(np.uint32) & 0xFFFF0000).view(np.float32)  # as many bits as bf16 has
    for found, wanted in zip(run(blocks, bits), search(blocks, bits), strict=True):
        assert np.array_equal(found, wanted)


def test_representable_is_what_fp16_gives_back() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].astype(np.float32)
    between = (every[1:] + every[:-1]) / 2  # ties, and what lies beside them
    values = np.concatenate([every, between, np.nextafter(between, np.float32(np.inf)), [7e4, -1e30, 1e-30]])
    wanted = np.clip(values, -FP16, FP16).astype(np.float16).astype(np.float32)
    assert np.array_equal(np.array([representable(value) for value in values.astype(np.float32)]), wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_is_found(bad: float) -> None:
    blocks = np.ones((9, 64), np.float32)
    blocks[7, 33] = bad
    codes, scales = np.empty((9, 32), np.uint8), np.empty(9, np.float32)
    assert not quantize_blocks(blocks, 4, np.ones(1, np.float32), codes, scales)
