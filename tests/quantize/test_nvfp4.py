"""NVFP4 against its definition, written out anew, and its scales against the best of those that were tried."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import reference

from ernie_export.quantize import nvfp4, nvfp4_search
from ernie_export.quantize.formats import NotFinite, Packed, dequantize, matrix_scale, quantize
from ernie_export.recipe import PartFormat

FORM = PartFormat(format="nvfp4")
patient = settings(deadline=None)  # the first call compiles
#: E2M1, by its bits: sign, two of exponent (bias 1), one of mantissa.
NUMBERS = [
    (-1) ** (code >> 3)
    * (((code & 1) / 2) if not code & 6 else (1 + (code & 1) / 2) * 2 ** ((code >> 1 & 3) - 1))
    for code in range(16)
]
SCALES = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def matrix(rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 16 * blocks)).astype(np.float32)


def parts_of(packed: Packed) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Codes [N,K], the blocks' scales [N,K/16] float32, the matrix's."""
    assert packed.scales is not None and packed.matrix_scale is not None
    codes = np.stack([packed.data & 15, packed.data >> 4], axis=-1).reshape(len(packed.data), -1)
    return codes, packed.scales.astype(np.float32), packed.matrix_scale[0, 0]


def nearest(numbers: np.ndarray) -> np.ndarray:
    """Codes of the nearest numbers, the even one of two."""
    magnitudes = np.array(NUMBERS[:8])
    off = np.abs(np.abs(numbers)[..., None] - magnitudes)
    off[..., 1::2] += 1e-9  # far less than float32 tells apart here
    return np.argmin(off, axis=-1) | (np.signbit(numbers) & (numbers != 0)) << 3


def test_every_code_means_what_the_definition_says() -> None:
    assert NUMBERS[:8] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    data = np.arange(256, dtype=np.uint8).reshape(1, -1)  # every pair
    scales = np.resize(SCALES, (1, 32)).astype(np.float32).astype(nvfp4.E4M3)
    packed = Packed(data, scales, np.array([[0.25]], np.float32))
    want = [NUMBERS[nibble] for byte in range(256) for nibble in (byte & 15, byte >> 4)]
    assert np.array_equal(
        dequantize(packed, FORM)[0], np.array(want) * np.repeat(np.resize(SCALES, 32), 16) / 4
    )


@patient
@given(st.floats(0, 600, width=32))
def test_a_scale_becomes_the_nearest_e4m3(scale: float) -> None:
    off = np.abs(SCALES - scale)
    (best,) = {
        int(code)
        for code in np.flatnonzero(off == off.min())
        if code % 2 == 0 or (off == off.min()).sum() == 1
    }
    assert nvfp4_search.nearest_scale(np.float32(scale)) == SCALES[best]


@patient
@given(st.floats(0, 100, width=32))
def test_a_number_becomes_the_nearest_e2m1(number: float) -> None:
    assert nvfp4_search.magnitude(np.float32(number)) == nearest(np.array(number))


def test_what_lies_half_way_goes_to_the_even_code() -> None:
    halves = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]
    assert [nvfp4_search.magnitude(np.float32(half)) for half in halves] == [0, 2, 2, 4, 4, 6, 6]


@patient
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1), st.floats(1e-20, 1e20))
def test_codes_are_the_nearest_to_their_scale(rows: int, blocks: int, seed: int, size: float) -> None:
    weight = matrix(rows, blocks, seed) ** 3 * np.float32(size)
    codes, scales, whole = parts_of(quantize(weight, FORM))
    assert whole == np.float32(np.abs(weight).max() / np.float32(6 * 448))
    factors = np.repeat(scales * whole, 16, axis=1)
    assert np.array_equal(
        codes[factors > 0], nearest(weight / np.where(factors > 0, factors, 1))[factors > 0]
    )
    assert not (codes[factors == 0] & 7).any()


@patient
@given(st.integers(0, 2**32 - 1))
def test_a_scale_is_the_best_of_those_tried(seed: int) -> None:
    """Among them NVIDIA's own: largest weight / 6."""
    weight = matrix(2, 3, seed) ** 3
    packed = quantize(weight, FORM)
    _, _, whole = parts_of(packed)
    blocks = weight.reshape(-1, 16).astype(np.float64)
    tried = []
    for top in (6, 8, 7.5, 7, 6.5, 5.5, 5, 4.5, 4, 3.5, 3):
        exact = np.minimum(np.abs(blocks).max(1) / top / whole, 448).astype(np.float32)
        scales = exact.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)[:, None] * float(whole)
        back = np.array(NUMBERS)[nearest(blocks / np.where(scales > 0, scales, 1))] * scales
        tried.append(((back - blocks) ** 2).sum(1))
    found = ((dequantize(packed, FORM).reshape(-1, 16) - blocks) ** 2).sum(1)
    assert np.allclose(found, np.min(tried, axis=0), rtol=1e-4, atol=1e-12)


def test_rows_of_a_matrix_have_its_scale() -> None:
    weight = matrix(8, 2)
    whole = quantize(weight, FORM)
    scale = matrix_scale(weight, FORM)
    halves = [quantize(half, FORM, scale) for half in (weight[:3], weight[3:])]
    for name in ("data", "scales"):
        assert np.array_equal(
            np.concatenate([getattr(half, name) for half in halves]).view(np.uint8),
            getattr(whole, name).view(np.uint8),
        )


def test_nothing_is_nothing() -> None:
    weight = np.zeros((2, 48), np.float32)
    assert not dequantize(quantize(weight, FORM), FORM).any()
    weight[0, :16] = matrix(1, 1)[0]
    weight[1, 20] = 1e-30  # no E4M3 is small enough for a scale of it
    back = dequantize(quantize(weight, FORM), FORM)
    assert back[0, :16].any() and not back[0, 16:].any() and not back[1].any()


def test_onnx_means_the_same() -> None:
    """Its reference implementation of the two DequantizeLinear that NVFP4 is written as."""
    weight = matrix(5, 4)
    packed = quantize(weight, FORM)
    codes, _, whole = parts_of(packed)
    graph = onnx.parser.parse_model(
        """<ir_version: 11, opset_import: ["": 23]>
        g (float4e2m1[5,64] q, float8e4m3fn[5,4] s, float t) => (float[5,64] y) {
        scales = DequantizeLinear (s, t)
        y = DequantizeLinear <axis: int = 1, block_size: int = 16> (q, scales)
    }"""
    )
    given = {"q": codes.view(ml_dtypes.float4_e2m1fn), "s": packed.scales, "t": np.array(whole)}
    (y,) = reference.ReferenceEvaluator(graph).run(None, given)
    assert np.array_equal(y, dequantize(packed, FORM))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    weight = matrix(2, 1)
    weight[1, 3] = bad
    with pytest.raises(NotFinite):
        quantize(weight, FORM)
