"""Stored weights of FP8 and NVFP4 against the checkpoint's: each is where it belongs, and no other place will do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ernie_export.quantize import formats
from ernie_export.quantize.formats import Packed
from ernie_export.recipe import PartFormat
from ernie_export.validate import weights

FORMS = [PartFormat(format="fp8"), PartFormat(format="nvfp4")]


def misplaced(weight: np.ndarray, packed: Packed, form: PartFormat) -> float:
    block = formats.packing(form)[1] or weight.shape[1]
    pieces = weights._pieces(weight, packed, form, 0.5)
    return round(weights._error("w", "w", pieces, block).misplaced * weight.size)


def moved(packed: Packed, form: PartFormat, at: int, code: int) -> Packed:
    bits = formats.packing(form)[0]
    codes = formats.codes_of(packed, form).copy()
    codes.reshape(-1)[at] = code
    return replace(packed, data=formats.pack(codes, bits).view(packed.data.dtype))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_code_beside_the_nearest_is_found(form: PartFormat) -> None:
    weight = (np.random.default_rng(2).standard_normal((4, 64)) ** 3).astype(np.float32)
    weight[1, :8] = 0
    packed = formats.quantize(weight, form)
    assert misplaced(weight, packed, form) == 0
    half = 2 ** (formats.packing(form)[0] - 1)
    last = len(weights.LEVELS[form.format]) - 1
    tried = 0
    for at, code in enumerate(formats.codes_of(packed, form).reshape(-1).tolist()):
        magnitude, sign = code % half, code // half * half
        others = {sign + other for other in (magnitude - 1, magnitude + 1) if 0 <= other <= last}
        if magnitude:
            others.add(code ^ half)
        for other in others:
            assert misplaced(weight, moved(packed, form, at, other), form) == 1, (at, code, other)
            tried += 1
    assert tried > 1.5 * weight.size


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_no_number_is_found(form: PartFormat) -> None:
    weight = np.random.default_rng(2).standard_normal((2, 32)).astype(np.float32)
    packed = formats.quantize(weight, form)
    assert packed.scales is not None
    scales = packed.scales.copy()
    scales[0, 0] = np.nan
    block = formats.packing(form)[1] or 32
    assert misplaced(weight, replace(packed, scales=scales), form) == block
    if form.format == "fp8":
        assert misplaced(weight, moved(packed, form, 3, 0x7F), form) == 1
