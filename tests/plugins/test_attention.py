from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins import exact
from tests.plugins.emulated import EXAMPLES, SCHEDULES, Answer, Refused, Schedule
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
    ) -> None:
        self.before, self.tokens, self.rows, self.kv_heads = before, tokens, rows, kv_heads
        self.heads, self.scale = group * kv_heads, head_dim**-0.5
        random = np.random.default_rng(rows + tokens)
        batch = len(before)
        self.query = exact.activations(random, (batch, tokens, self.heads * head_dim), dtype)
        self.key = exact.activations(random, (batch, tokens, kv_heads * head_dim), dtype)
        self.value = exact.activations(random, (batch, tokens, kv_heads * head_dim), dtype)
        shape = (batch, kv_heads, rows if past_rows is None else past_rows, head_dim)
        self.past = exact.activations(random, shape, dtype), exact.activations(random, shape, dtype)
        for cache in self.past:  # nothing that was not written is read
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
            **options,
        )

    def split(self, x: Array, heads: int) -> Array:
        """[B, S, heads·D] → [B, S, heads, D] float64."""
        return x.astype(np.float64).reshape(*x.shape[:2], heads, -1)

    def exact(self) -> tuple[Array, Array, Array]:
        cos, sin = self.cos[self.positions][:, :, None], self.sin[self.positions][:, :, None]
        query = exact.turned(self.split(self.query, self.heads), cos, sin)
        key = exact.turned(self.split(self.key, self.kv_heads), cos, sin)
        value = self.split(self.value, self.kv_heads)
        keys, values = (np.full((len(x), x.shape[1], self.rows, x.shape[3]), np.nan) for x in self.past)
        keys[:, :, : self.past[0].shape[2]], values[:, :, : self.past[1].shape[2]] = self.past
        output = np.empty(query.shape)
        for b, length in enumerate(self.before):
            keys[b, :, length : length + self.tokens] = key[b].transpose(1, 0, 2)
            values[b, :, length : length + self.tokens] = value[b].transpose(1, 0, 2)
            for s in range(self.tokens):
                seen = slice(0, length + s + 1)
                output[b, s] = exact.attention(query[b, s], keys[b, :, seen], values[b, :, seen], self.scale)
        return output.reshape(self.query.shape), keys, values

    def checked(self, **options: Any) -> Answer:
        answer = self.run(**options)
        limit = LIMITS["fp16" if self.query.dtype == np.float16 else "bf16"]
        output, keys, values = self.exact()
        assert exact.error(answer.arrays["output"], output) < limit
        for present, expected in (("present_key", keys), ("present_value", values)):
            cache = answer.arrays[present].astype(np.float64)
            assert (np.isnan(cache) == np.isnan(expected)).all()
            assert exact.error(np.nan_to_num(cache), np.nan_to_num(expected)) < limit
        assert answer.arrays["faults"][0] == 0
        return answer


@settings(EXAMPLES, max_examples=25)
@given(
    before=st.lists(st.integers(0, 150), min_size=1, max_size=2),
    tokens=st.integers(1, 9),
    group=st.integers(1, 9),
    kv_heads=st.integers(1, 2),
    head_dim=st.sampled_from([64, 128]),
    dtype=st.sampled_from(list(TYPES.values())),
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
    free: int,
    schedule: Schedule,
) -> None:
    step = Step(before, tokens, max(before) + tokens + free, group, kv_heads, head_dim, dtype)
    step.checked(schedule=schedule)


@settings(EXAMPLES, max_examples=4)
@given(before=st.integers(0, 90), tokens=st.integers(1, 3), schedule=SCHEDULES)
def test_no_thread_races(before: int, tokens: int, schedule: Schedule) -> None:
    Step([before], tokens, before + tokens + 7).checked(schedule=schedule, flavour="thread")


@pytest.mark.parametrize("dtype", list(TYPES.values()))
def test_true_size(dtype: Any) -> None:
    """Decode of the 21B, 1,500 tokens into a cache of 4,096."""
    Step([1500], 1, 4096, 5, 4, 128, dtype).checked(flavour="plain")


@pytest.mark.parametrize("past_rows", [0, 9, 20])
def test_a_cache_that_grows(past_rows: int) -> None:
    Step([past_rows, past_rows // 2], 3, past_rows + 3, past_rows=past_rows).checked()


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
        ({"head_dim": 32}, "head_dim is 32; it must be 64 or 128"),
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
