from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins import exact
from tests.plugins.emulated import EXAMPLES, SCHEDULES, Answer, Refused, Schedule, workspace
from tests.plugins.kernels import TYPES, attention

Array = np.ndarray[Any, Any]
#: Queries, keys and probabilities are rounded to the type, and the output again.
LIMITS = {"fp16": 1e-3, "bf16": 8e-3}


class Step:
    """New tokens over a cache that holds `before` rows of each prompt."""

    def __init__(
        self,
        before: list[int],
        tokens: int,
        rows: int,
        group: int = 2,
        kv_heads: int = 2,
        head_dim: int = 64,
        dtype: Any = np.float16,
        past_rows: int | None = None,
        cache_bits: int = 16,
    ) -> None:
        self.before, self.tokens, self.rows, self.kv_heads = before, tokens, rows, kv_heads
        self.heads, self.scale = group * kv_heads, head_dim**-0.5
        random = np.random.default_rng(rows + tokens)
        batch = len(before)
        self.query = exact.activations(random, (batch, tokens, self.heads * head_dim), dtype)
        self.key = exact.activations(random, (batch, tokens, kv_heads * head_dim), dtype)
        self.value = exact.activations(random, (batch, tokens, kv_heads * head_dim), dtype)
        shape = (batch, kv_heads, rows if past_rows is None else past_rows, head_dim)
        self.past_scales: tuple[Array, Array] | None = None
        self.past = exact.activations(random, shape, dtype), exact.activations(random, shape, dtype)
        if cache_bits == 8:
            codes = random.integers(1, 256, (2, *shape), np.uint8)
            scales = random.uniform(0.005, 0.02, (2, *shape[:3])).astype(np.float32)
            self.past, self.past_scales = (codes[0], codes[1]), (scales[0], scales[1])
        for cache in self.past_scales or self.past:  # nothing that was not written is read
            for b, length in enumerate(before):
                cache[b, :, length:] = np.nan
        self.positions = np.array([np.arange(tokens) + length for length in before], np.int64)
        angles = np.arange(rows)[:, None] * 10000.0 ** (-np.arange(head_dim // 2) * 2 / head_dim)
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.seqlens_k = np.array([length + tokens - 1 for length in before], np.int32)

    def run(self, **options: Any) -> Answer:
        return attention(
            self.query,
            self.key,
            self.value,
            self.past,
            self.cos,
            self.sin,
            self.positions,
            self.seqlens_k,
            self.heads,
            self.rows,
            self.scale,
            self.past_scales,
            **options,
        )

    def split(self, x: Array, heads: int) -> Array:
        """[B, S, heads·D] → [B, S, heads, D] float64."""
        return x.astype(np.float64).reshape(*x.shape[:2], heads, -1)

    def stored(self, answer: Answer | None) -> tuple[Array, Array]:
        """Keys and values in the cache before, or in the one that a run answers with, float64."""
        past = [self.past, self.past_scales]
        if answer is not None:
            names = ["present_key", "present_value"]
            past = [[answer.arrays[n] for n in names], [answer.arrays.get(f"{n}_scales") for n in names]]
        keys, values = (part.astype(np.float64) for part in past[0])
        if self.past_scales is not None:
            keys, values = (
                (codes - 128) * scales[..., None].astype(np.float64)
                for codes, scales in zip((keys, values), past[1], strict=True)
            )
        return keys, values

    def exact(self, answer: Answer) -> tuple[Array, Array, Array]:
        """Output, keys and values; with 8 bits the output is of the cache as it was written."""
        cos, sin = self.cos[self.positions][:, :, None], self.sin[self.positions][:, :, None]
        query = exact.turned(self.split(self.query, self.heads), cos, sin)
        key = exact.turned(self.split(self.key, self.kv_heads), cos, sin)
        value = self.split(self.value, self.kv_heads)
        past = self.stored(None)
        keys, values = (np.full((len(x), x.shape[1], self.rows, x.shape[3]), np.nan) for x in past)
        keys[:, :, : past[0].shape[2]], values[:, :, : past[1].shape[2]] = past
        for b, length in enumerate(self.before):
            keys[b, :, length : length + self.tokens] = key[b].transpose(1, 0, 2)
            values[b, :, length : length + self.tokens] = value[b].transpose(1, 0, 2)
        read = (keys, values) if self.past_scales is None else self.stored(answer)
        output = np.empty(query.shape)
        for b, length in enumerate(self.before):
            for s in range(self.tokens):
                some_keys, some_values = (part[b, :, : length + s + 1] for part in read)
                output[b, s] = exact.attention(query[b, s], some_keys, some_values, self.scale)
        return output.reshape(self.query.shape), keys, values

    def checked(self, **options: Any) -> Answer:
        answer = self.run(**options)
        limit = LIMITS["fp16" if self.query.dtype == np.float16 else "bf16"]
        output, *expected = self.exact(answer)
        assert exact.error(answer.arrays["output"], output) < limit
        for cache, meant in zip(self.stored(answer), expected, strict=True):
            assert (np.isnan(cache) == np.isnan(meant)).all()
            cache, meant = np.nan_to_num(cache), np.nan_to_num(meant)
            if self.past_scales is None:
                assert exact.error(cache, meant) < limit
            else:  # half a step of the row's scale, and the rounding to the type before it
                largest = np.abs(meant).max(axis=-1, keepdims=True)
                assert (np.abs(cache - meant) <= largest * (0.5 / 127 + 2 * limit)).all()
        assert answer.arrays["faults"][0] == 0
        return answer


@settings(EXAMPLES, max_examples=30)
@given(
    before=st.lists(st.integers(0, 150), min_size=1, max_size=2),
    tokens=st.integers(1, 30),
    group=st.integers(1, 9),
    kv_heads=st.integers(1, 2),
    head_dim=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from(list(TYPES.values())),
    cache_bits=st.sampled_from([16, 8]),
    free=st.integers(0, 90),
    schedule=SCHEDULES,
)
def test_as_float64(
    before: list[int],
    tokens: int,
    group: int,
    kv_heads: int,
    head_dim: int,
    dtype: Any,
    cache_bits: int,
    free: int,
    schedule: Schedule,
) -> None:
    rows = max(before) + tokens + free
    step = Step(before, tokens, rows, group, kv_heads, head_dim, dtype, cache_bits=cache_bits)
    step.checked(schedule=schedule)


@settings(EXAMPLES, max_examples=6)
@given(
    before=st.integers(0, 90),
    tokens=st.sampled_from([1, 3, 17, 30]),
    cache_bits=st.sampled_from([16, 8]),
    schedule=SCHEDULES,
)
def test_no_thread_races(before: int, tokens: int, cache_bits: int, schedule: Schedule) -> None:
    step = Step([before], tokens, before + tokens + 7, head_dim=32, cache_bits=cache_bits)
    step.checked(schedule=schedule, flavour="thread")


@pytest.mark.parametrize("dtype", list(TYPES.values()))
def test_true_size(dtype: Any) -> None:
    """Decode of the 21B, 1,500 tokens into a cache of 4,096."""
    Step([1500], 1, 4096, 5, 4, 128, dtype).checked(flavour="plain")


@pytest.mark.parametrize("cache_bits", [16, 8])
@pytest.mark.parametrize("past_rows", [0, 9, 20])
def test_a_cache_that_grows(past_rows: int, cache_bits: int) -> None:
    before = [past_rows, past_rows // 2]
    Step(before, 3, past_rows + 3, past_rows=past_rows, cache_bits=cache_bits).checked()


@pytest.mark.parametrize("cache_bits", [16, 8])
def test_prefill_in_many_blocks_needs_no_joining(cache_bits: int) -> None:
    """Five tiles of 64 rows of four heads of 13 prompts are more than half of enough."""
    step = Step([2] * 13, 17, 70, 16, 4, 32, cache_bits=cache_bits)
    assert [launch.kernel for launch in step.checked(flavour="plain").kernels] == [
        "attention_append_rows",
        "attention_tile",
    ]


def test_a_row_of_8_bits_is_zero_or_not_finite() -> None:
    """All zeros have the scale 0; NaN and infinity make the scale NaN, and so all that sees the row."""
    step = Step([3, 5], 2, 8, 1, 1, 32, cache_bits=8)
    step.value[0, 0] = step.key[0, 0] = 0
    step.value[1, 1, 7], step.key[0, 1, 3] = np.inf, np.nan
    arrays = step.run().arrays
    assert arrays["present_value_scales"][0, 0, 3] == 0 and arrays["present_key_scales"][0, 0, 3] == 0
    assert (arrays["present_value"][0, 0, 3] == 128).all()
    assert np.isnan(arrays["present_value_scales"][1, 0, 6]) and np.isnan(
        arrays["present_key_scales"][0, 0, 4]
    )
    finite = np.isfinite(arrays["output"]).reshape(4, -1).all(axis=1)
    assert finite.tolist() == [
        True,
        False,
        False,
        False,
    ]  # [1, 0]: a key that is masked, whose value is not finite


def test_small_values_of_8_bits_keep_their_accuracy() -> None:
    """fp16 holds probability · scale to its full precision down to values of 2⁻¹³."""
    step = Step([40], 1, 64, 2, 1, 32, cache_bits=8)
    assert step.past_scales is not None
    step.past_scales[1][...] *= 2.0**-7
    step.value *= np.float16(2.0**-7)
    step.checked()


def test_room_for_many_tokens_is_room_for_fewer() -> None:
    sizes = {"heads": 20, "kv_heads": 4, "head_dim": 128, "past_rows": 4096, "rows": 4096, "positions": 4096}
    pointers = dict.fromkeys(map(str, range(15)))  # and the workspace's size
    needed = [
        workspace(
            "ernie_cached_attention",
            {"type": 0, "batch": 1, "tokens": tokens, **sizes, "scale": 0, **pointers, "cache_bits": 16},
        )
        for tokens in range(1, 4096, 3)
    ]
    assert needed == sorted(needed) and needed[-1] == 512 * 64 * 130 * 4


def test_prefill_padded_on_the_right() -> None:
    """A row of the batch with fewer tokens than S starts at 0, as the operator's definition says."""
    step = Step([0, 0], 6, 16)
    step.seqlens_k = np.array([5, 2], np.int32)
    step.checked()


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_what_is_not_finite_stays_in_its_prompt(part: str) -> None:
    good, bad = Step([40, 20], 2, 64), Step([40, 20], 2, 64)
    getattr(bad, part)[1, 0, 3] = np.nan
    one, other = good.run().arrays["output"], bad.run().arrays["output"]
    assert (one[0] == other[0]).all() and np.isnan(other[1]).any()


@pytest.mark.parametrize(
    ("place", "value"), [("positions", 64), ("positions", -1), ("seqlens_k", 64), ("seqlens_k", 2**31 - 1)]
)
def test_what_is_out_of_range_is_a_fault(place: str, value: int) -> None:
    good, bad = Step([40, 20], 1, 64), Step([40, 20], 1, 64)
    getattr(bad, place)[1] = value
    one, other = good.run().arrays, bad.run().arrays
    assert other["faults"][0] == 1
    assert np.isnan(other["output"][1]).all() and (one["output"][0] == other["output"][0]).all()


def test_the_same_to_the_bit_in_every_order() -> None:
    step = Step([300], 1, 400, 5, 2, 128)
    orders = [Schedule(0, 0, 1), Schedule(1, 0, 2), Schedule(2, 0, 3)]
    assert len({step.run(schedule=order).arrays["output"].tobytes() for order in orders}) == 1


def test_no_token_is_no_work() -> None:
    assert Step([3], 0, 16).run().launches == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 96}, "head_dim is 96; it must be 32, 64 or 128"),
        ({"past_rows": 17}, "the past has 17 rows; the present has 16"),
        ({"tokens": 20}, "20 new rows do not fit into a cache of 16"),
    ],
)
def test_refuses(changes: dict[str, int], message: str) -> None:
    sizes: dict[str, Any] = {"tokens": 1, "rows": 16, **changes}
    step = Step([0], **sizes)
    with pytest.raises(Refused, match=message):
        step.run()


def test_refuses_a_workspace_too_small() -> None:
    with pytest.raises(Refused, match="attention needs"):
        Step([0], 1, 16).run(spare=-1)


def test_refuses_heads_that_do_not_divide() -> None:
    step = Step([0], 1, 16, 3, 2)
    step.heads = 5
    with pytest.raises(Refused, match="5 heads do not share 2 key-value heads evenly"):
        step.run()


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        (("batch", "i32", -1), "batch is -1, tokens is 1"),
        (
            ("past_rows", "i32", 15),
            "past and present are one buffer, so they have the same rows, not 15 and 16",
        ),
        (
            ("heads", "i32", 2**30 + 2),
            "1 tokens of 1073741826 heads are more than 1073741824 rows of queries",
        ),
        (("query", "u64", 8), "query and cache must start at a multiple of 16 bytes"),
        (("value", "u64", 2), "key, value and workspace must start at a multiple of 4 bytes"),
        (("cache_bits", "i32", 4), "cache_bits is 4; it must be 16 or 8"),
    ],
)
def test_refuses_a_number_or_a_place(instead: tuple[str, str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        Step([0], 1, 16, cache_bits=8).run(instead=instead)


@pytest.mark.parametrize("name", ["past_key_scales", "past_value_scales", "present_key_scales"])
def test_refuses_8_bits_without_scales(name: str) -> None:
    with pytest.raises(Refused, match="a cache of 8 bits needs the scales of its keys and values"):
        Step([0], 1, 16, past_rows=8, cache_bits=8).run(instead=(name, "u64", 0))


def test_what_cuda_will_not_launch_is_said() -> None:
    """A grid's z, the batch, ends at 65,535."""
    with pytest.raises(Refused, match="attention was not launched: "):
        Step([0] * 65536, 1, 1, 1, 1, 32).run(flavour="plain")
