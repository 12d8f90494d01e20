"""FP8 against its definition, written out anew in exact fractions, and against ONNX's own reference."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, reference

from ernie_export.quantize import fp8
from ernie_export.quantize.formats import NotFinite, Packed, dequantize, quantize
from ernie_export.recipe import PartFormat

FORM = PartFormat(format="fp8")


def number(code: int) -> Fraction | None:
    """What an E4M3 code stands for, bit by bit; None: NaN."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 0x7F == 0x7F:
        return None
    magnitude = Fraction(8 + mantissa, 8) * Fraction(2) ** (exponent - 7)
    if not exponent:
        magnitude = Fraction(mantissa, 8) * Fraction(1, 64)
    return -magnitude if code & 0x80 else magnitude


MAGNITUDES = {code: value for code in range(127) if (value := number(code)) is not None}


def nearest(x: Fraction) -> int:
    """The code of the nearest number, the even one of two; beyond 448 that of 448."""
    return min(MAGNITUDES, key=lambda code: (abs(MAGNITUDES[code] - abs(x)), code % 2)) | (x < 0) << 7


def codes_of(*rows: list[float]) -> list[list[int]]:
    """Rows that begin with 448, so that their scale is 1."""
    packed = quantize(np.array(rows, np.float32), FORM)
    assert packed.scales is not None and (packed.scales == 1).all()
    return packed.data.view(np.uint8).tolist()


def test_every_code_means_what_the_definition_says() -> None:
    codes = np.arange(256, dtype=np.uint8)[None]
    values = dequantize(Packed(codes.view(fp8.E4M3), np.ones((1, 1), np.float32)), FORM)[0]
    for code, value in enumerate(values.tolist()):
        want = number(code)
        assert np.isnan(value) if want is None else Fraction(value) == want
    assert values[0x7E] == 448 and values[1] == 2**-9


def test_every_number_there_is_keeps_its_code() -> None:
    values = [float(MAGNITUDES[code]) for code in range(127)]
    (codes,) = codes_of([448, *values, *(-value for value in values)])
    assert codes == [0x7E, *range(127), *range(0x80, 0xFF)]


def test_what_lies_half_way_goes_to_the_even_code() -> None:
    halves = [(MAGNITUDES[code] + MAGNITUDES[code + 1]) / 2 for code in range(126)]
    near = [float(half) for half in halves]
    assert all(Fraction(value) == half for value, half in zip(near, halves, strict=True))
    (codes,) = codes_of([448, *near])
    assert codes[1:] == [code + code % 2 for code in range(126)]
    for towards, step in ((0.0, 0), (np.inf, 1)):
        (codes,) = codes_of(
            [448, *np.nextafter(np.array(near[:-1], np.float32), np.float32(towards)).tolist()]
        )
        assert codes[1:] == [code + step for code in range(125)]


@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=40))
def test_numbers_become_the_nearest(numbers: list[float]) -> None:
    (codes,) = codes_of([448, *numbers])
    # The sign of a zero is that of what became it.
    assert [code & 0x7F if code == 0x80 else code for code in codes[1:]] == [
        nearest(Fraction(x)) & (0x7F if nearest(Fraction(x)) == 0x80 else 0xFF) for x in numbers
    ]


@given(
    st.lists(
        st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=8, max_size=8),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_a_row_is_quantized_by_its_largest_weight(rows: list[list[float]]) -> None:
    weight = np.array(rows, np.float32)
    packed = quantize(weight, FORM)
    assert packed.scales is not None and packed.scales.shape == (len(rows), 1)
    assert np.array_equal(packed.scales[:, 0], np.abs(weight).max(1) / np.float32(448))
    values = packed.data.astype(np.float32)
    assert np.isfinite(values).all()
    for row, scale, numbers in zip(weight, packed.scales[:, 0], values, strict=True):
        if scale > 1e-30:  # a scale of few bits says little of what it scales
            wanted = [nearest(Fraction(float(np.float32(w / scale)))) for w in row]
            assert [float(abs(MAGNITUDES[code & 0x7F])) for code in wanted] == np.abs(numbers).tolist()
        if scale == 0:
            assert not numbers.any()


def test_onnx_means_the_same() -> None:
    """Its reference implementation of QuantizeLinear and DequantizeLinear, a scale a row."""
    weight = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32) ** 3
    packed = quantize(weight, FORM)
    assert packed.scales is not None
    graph = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 23]>
        g (float[7,64] w, float[7] s) => (float[7,64] y, float8e4m3fn[7,64] q) {
        q = QuantizeLinear <axis: int = 0, output_dtype: int = 17> (w, s)
        y = DequantizeLinear <axis: int = 0> (q, s)
    }"""
    )
    y, q = reference.ReferenceEvaluator(graph).run(None, {"w": weight, "s": packed.scales[:, 0]})
    assert np.array_equal(np.asarray(q).view(np.uint8), packed.data.view(np.uint8))
    assert np.array_equal(y, dequantize(packed, FORM))
    assert helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN) == fp8.E4M3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NotFinite):
        quantize(np.array([[1, bad]], np.float32), FORM)
