"""Packing and quantizing: layout, round trip, least error, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ernie_export.quantize import formats
from ernie_export.recipe import PartFormat

INTEGERS = [PartFormat(format=f, block_size=b) for f in ("int4", "int8") for b in (32, 64, 128)]
forms = st.sampled_from(INTEGERS)


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(0, 5), st.integers(0, 9).map(lambda n: 2 * n))))
def test_unpack_undoes_pack(codes: np.ndarray) -> None:
    for bits in (4, 8):
        small = codes & (2**bits - 1)
        assert np.array_equal(formats.unpack(formats.pack(small, bits), bits), small)


def test_int4_is_low_nibble_first_and_offset_binary() -> None:
    weight = np.tile(np.array([[-8.0, 7.0, 0.0, 1.0]], np.float32), (1, 8))
    packed = formats.quantize(weight, PartFormat(format="int4", block_size=32))
    assert packed.scales is not None
    assert packed.scales.tolist() == [[1.0]]
    assert packed.data[0, :2].tolist() == [0xF0, 0x98]


@given(forms, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_error_is_at_most_half_a_step(
    form: PartFormat, rows: int, blocks: int, seed: int, size: float
) -> None:
    assert form.block_size
    weight = matrix(rows, blocks * form.block_size, seed) * np.float32(size)
    packed = formats.quantize(weight, form)
    bits = formats.BITS[form.format]
    assert packed.data.shape == (rows, weight.shape[1] * bits // 8)
    assert packed.scales is not None and packed.scales.shape == (rows, blocks)
    back = formats.dequantize(packed, form)
    # A search may clip the largest weights to bring the others nearer: bound the mean, not each.
    step = np.abs(weight).reshape(rows, blocks, -1).max(-1) / (2 ** (bits - 1) - 1)
    error = ((back - weight) ** 2).reshape(rows, blocks, -1).mean(-1)
    assert (error <= (step / 2) ** 2 * 1.02).all()


@pytest.mark.parametrize("form", INTEGERS, ids=str)
def test_search_is_no_worse_than_plain_rounding(form: PartFormat) -> None:
    weight = matrix(64, 256) ** 3  # heavy tails, where the largest weight is a poor guide
    half = 2 ** (formats.BITS[form.format] - 1)
    blocks = weight.reshape(-1, form.block_size)
    scale = (np.abs(blocks).max(1, keepdims=True) / (half - 1)).astype(np.float16).astype(np.float32)
    plain = np.clip(np.rint(blocks / scale), -half, half - 1) * scale
    back = formats.dequantize(formats.quantize(weight, form), form)
    searched, rounded = (float(((w - weight) ** 2).mean()) for w in (back, plain.reshape(weight.shape)))
    assert searched <= rounded * (0.9 if form.format == "int4" else 1.001)


@pytest.mark.parametrize("form", INTEGERS, ids=str)
def test_blocks_do_not_leak(form: PartFormat) -> None:
    """A large weight coarsens its own block and no other."""
    assert form.block_size
    weight = matrix(2, 2 * form.block_size)
    loud = weight.copy()
    loud[0, 0] = 1000
    quiet_part = np.s_[:, form.block_size :]
    packed = [formats.dequantize(formats.quantize(w, form), form)[quiet_part] for w in (weight, loud)]
    assert np.array_equal(*packed)


def test_zero_block_stays_zero() -> None:
    for form in INTEGERS:
        back = formats.dequantize(formats.quantize(np.zeros((2, 128), np.float32), form), form)
        assert not back.any()


def test_pieces_equal_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, form = matrix(37, 128), INTEGERS[0]
    whole = formats.quantize(weight, form)
    monkeypatch.setattr(formats, "PIECE", 5 * 128)
    pieces = formats.quantize(weight, form)
    assert np.array_equal(whole.data, pieces.data) and np.array_equal(whole.scales, pieces.scales)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_float_formats_keep_the_values(dtype: type) -> None:
    weight = matrix(4, 8).astype(dtype)
    for name in ("fp32", "fp16"):
        packed = formats.quantize(weight, PartFormat(format=name))
        assert packed.scales is None and packed.data.dtype == formats.FLOATS[name]
        assert np.array_equal(packed.data, weight.astype(formats.FLOATS[name]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [*INTEGERS, PartFormat(format="fp32"), PartFormat(format="fp16")], ids=str)
def test_not_finite_is_refused(form: PartFormat, bad: float) -> None:
    weight = matrix(3, 128)
    weight[2, 127] = bad
    with pytest.raises(formats.NotFinite):
        formats.quantize(weight, form)


def test_fp16_overflow_is_refused() -> None:
    weight = np.full((1, 128), 1e5, ml_dtypes.bfloat16)
    with pytest.raises(formats.NotFinite):
        formats.quantize(weight, PartFormat(format="fp16"))
