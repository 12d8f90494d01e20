from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.quantize import formats
from ernie_export.recipe import PartFormat
from tests.plugins import exact
from tests.plugins.emulated import EXAMPLES, SCHEDULES, Refused, Schedule
from tests.plugins.kernels import TYPES, linear

Array = np.ndarray[Any, Any]
#: Half a unit in the last place of the output, 2⁻¹¹ and 2⁻⁸ of it, and a little.
LIMITS = {"fp16": 5.2e-4, "bf16": 4.1e-3}


def limit(x: Array) -> float:
    return LIMITS["fp16" if x.dtype == np.float16 else "bf16"]


def checked(
    x: Array, n: int, bits: int, block_size: int, schedule: Schedule, flavour: str = "address"
) -> None:
    data, scales = exact.weights(np.random.default_rng(n), (n, x.shape[1]), bits, block_size)
    answer = linear(x, data, scales, bits, block_size, schedule=schedule, flavour=flavour)
    expected = x.astype(np.float64) @ exact.dequantized(data, scales, bits).T
    assert exact.error(answer.arrays["y"], expected, usual=0.1) < limit(x)
    assert answer.launches == 1


@settings(EXAMPLES, max_examples=25)
@given(
    tokens=st.integers(1, 19),
    n=st.integers(1, 40),
    blocks=st.integers(1, 12),
    block_size=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(list(TYPES.values())),
    schedule=SCHEDULES,
)
def test_as_float64(
    tokens: int, n: int, blocks: int, block_size: int, bits: int, dtype: Any, schedule: Schedule
) -> None:
    x = exact.activations(np.random.default_rng(schedule.seed), (tokens, block_size * blocks), dtype)
    checked(x, n, bits, block_size, schedule)


@settings(EXAMPLES, max_examples=12)
@given(
    tokens=st.integers(17, 140),
    n=st.integers(1, 140),
    blocks=st.integers(1, 10),
    block_size=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(list(TYPES.values())),
    schedule=SCHEDULES,
)
def test_prefill_as_float64(
    tokens: int, n: int, blocks: int, block_size: int, bits: int, dtype: Any, schedule: Schedule
) -> None:
    x = exact.activations(np.random.default_rng(schedule.seed), (tokens, block_size * blocks), dtype)
    checked(x, n, bits, block_size, schedule)


@settings(EXAMPLES, max_examples=12)
@given(
    tokens=st.one_of(st.integers(1, 9), st.integers(17, 70)),
    blocks=st.integers(1, 6),
    block_size=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    schedule=SCHEDULES,
)
def test_no_thread_races(tokens: int, blocks: int, block_size: int, bits: int, schedule: Schedule) -> None:
    x = exact.activations(np.random.default_rng(schedule.seed), (tokens, block_size * blocks), np.float16)
    checked(x, 17, bits, block_size, schedule, "thread")


@pytest.mark.parametrize(("tokens", "bits"), [(1, 4), (1, 8), (16, 4), (100, 4)])
def test_true_size(tokens: int, bits: int) -> None:
    """The attention's query and output projections of the 21B."""
    x = exact.activations(np.random.default_rng(21), (tokens, 2560), np.float16)
    checked(x, 2560, bits, 128, Schedule(0, 0, 1), "plain")


@pytest.mark.parametrize(
    "form", [PartFormat(format="int4", block_size=32), PartFormat(format="int8", block_size=64)]
)
def test_reads_what_the_quantizer_writes(form: PartFormat) -> None:
    random = np.random.default_rng(7)
    packed = formats.quantize(random.standard_normal((24, 192)).astype(np.float32), form)
    x = exact.activations(random, (3, 192), np.float16)
    bits, block_size = formats.packing(form)
    answer = linear(x, packed.data, packed.scales, bits, block_size)
    expected = x.astype(np.float64) @ formats.dequantize(packed, form).astype(np.float64).T
    assert exact.error(answer.arrays["y"], expected) < limit(x)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 8, 16])
def test_a_weight_is_read_once_for_16_tokens(bits: int, tokens: int) -> None:
    data, scales = exact.weights(np.random.default_rng(1), (48, 256), bits, 64)
    answer = linear(np.ones((tokens, 256), np.float16), data, scales, bits, 64)
    assert answer.weight_bytes == data.size


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("tokens", "readings"), [(17, 1), (64, 1), (65, 2)])
def test_prefill_reads_a_weight_once_for_64_tokens(bits: int, tokens: int, readings: int) -> None:
    data, scales = exact.weights(np.random.default_rng(1), (128, 256), bits, 64)
    answer = linear(np.ones((tokens, 256), np.float16), data, scales, bits, 64)
    assert answer.weight_bytes == readings * data.size


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_is_exact(bits: int) -> None:
    """One weight at a time: all codes at all places of a word, in both types, come out as integers."""
    k, codes = 256, 2**bits
    values = (np.arange(k) * (codes // 16 + 1) + np.arange(codes)[:, None]) % codes
    data = formats.pack(values.astype(np.uint8), bits)
    scales = np.ones((codes, k // 32), np.float16)
    for dtype in TYPES.values():
        for first, tokens in [*((first, 16) for first in range(0, k, 16)), (0, k)]:
            x = np.zeros((tokens, k), dtype)
            x[np.arange(tokens), first + np.arange(tokens)] = 1
            y = linear(x, data, scales, bits, 32, flavour="plain").arrays["y"]
            assert (y.T.astype(np.float32) == values[:, first : first + tokens] - codes // 2).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tokens", [9, 40])
def test_what_is_not_finite_stays_in_its_token(tokens: int, value: float) -> None:
    data, scales = exact.weights(np.random.default_rng(1), (20, 128), 4, 32)
    x = exact.activations(np.random.default_rng(2), (tokens, 128), np.float16)
    good = linear(x, data, scales, 4, 32).arrays["y"]
    x[3, 100] = value
    bad = linear(x, data, scales, 4, 32).arrays["y"]
    assert not np.isfinite(bad[3]).any()
    others = [t for t in range(tokens) if t != 3]
    assert (bad[others] == good[others]).all()


@pytest.mark.parametrize("tokens", [5, 20])
def test_the_same_to_the_bit_in_every_order(tokens: int) -> None:
    data, scales = exact.weights(np.random.default_rng(1), (33, 640), 4, 128)
    x = exact.activations(np.random.default_rng(2), (tokens, 640), np.float16)
    answers = [
        linear(x, data, scales, 4, 128, schedule=Schedule(order, copies, seed)).arrays["y"].tobytes()
        for order, copies, seed in [(0, 0, 1), (0, 1, 2), (1, 0, 3), (2, 1, 4)]
    ]
    assert len(set(answers)) == 1


def test_no_token_is_no_work() -> None:
    data, scales = exact.weights(np.random.default_rng(1), (4, 64), 4, 32)
    assert linear(np.ones((0, 64), np.float16), data, scales, 4, 32).launches == 0


@pytest.mark.parametrize(
    ("k", "bits", "block_size", "message"),
    [
        (96, 4, 64, "K is 96; it must be a multiple of the block, 64"),
        (64, 2, 32, "bits is 2; it must be 4 or 8"),
        (64, 4, 16, "block_size is 16; it must be 32, 64 or 128"),
    ],
)
def test_refuses(k: int, bits: int, block_size: int, message: str) -> None:
    x, data = np.ones((1, k), np.float16), np.zeros((4, k * bits // 8), np.uint8)
    with pytest.raises(Refused, match=message):
        linear(x, data, np.ones((4, k // 16), np.float16), bits, block_size)


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        (("tokens", "i32", -1), "tokens is -1"),
        (("n", "i32", 0), "N is 0"),
        (("weight", "u64", 8), "x and weight must start at a multiple of 16 bytes"),
        (("scales", "u64", 2), "scales must start at a multiple of 4 bytes"),
    ],
)
def test_refuses_a_number_or_a_place(instead: tuple[str, str, Any], message: str) -> None:
    data, scales = exact.weights(np.random.default_rng(1), (4, 64), 4, 32)
    with pytest.raises(Refused, match=message):
        linear(np.ones((2, 64), np.float16), data, scales, 4, 32, instead=instead)
