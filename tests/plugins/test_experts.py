from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins import exact
from tests.plugins.emulated import EXAMPLES, SCHEDULES, Answer, Refused, Schedule, workspace
from tests.plugins.kernels import TYPES, experts

Array = np.ndarray[Any, Any]
#: The products are rounded to the type between the two matrices, and the output again.
LIMITS = {"fp16": 8e-4, "bf16": 6e-3}


class Layer:
    """Random experts, and what they should give."""

    def __init__(self, number: int, hidden: int, width: int, bits: int = 4, block_size: int = 32) -> None:
        random = np.random.default_rng(number)
        self.bits, self.block_size = bits, block_size
        gate_up = exact.weights(random, (number, 2 * width, hidden), bits, block_size)
        down = exact.weights(random, (number, hidden, width), bits, block_size)
        self.weights = (*gate_up, *down)
        self.expert_bytes = gate_up[0][0].size + down[0][0].size

    def run(self, x: Array, indices: Array, scores: Array, **options: Any) -> Answer:
        return experts(x, indices, scores, self.weights, self.bits, self.block_size, **options)

    def exact(self, x: Array, indices: Array, scores: Array) -> Array:
        used, places = np.unique(indices, return_inverse=True)
        gate_up, gate_up_scales, down, down_scales = (part[used] for part in self.weights)
        return exact.experts(
            x,
            places.reshape(indices.shape),
            scores,
            exact.dequantized(gate_up, gate_up_scales, self.bits),
            exact.dequantized(down, down_scales, self.bits),
        )

    def checked(self, x: Array, indices: Array, scores: Array, **options: Any) -> Answer:
        answer = self.run(x, indices, scores, **options)
        limit = LIMITS["fp16" if x.dtype == np.float16 else "bf16"]
        assert exact.error(answer.arrays["y"], self.exact(x, indices, scores)) < limit
        assert answer.arrays["faults"][0] == 0
        return answer


def routed(
    random: np.random.Generator, tokens: int, number: int, k: int, dtype: Any = np.float16
) -> tuple[Array, Array]:
    indices = np.stack([random.permutation(number)[:k] for _ in range(tokens)]).astype(np.int64)
    return indices, random.uniform(0.1, 0.9, (tokens, k)).astype(dtype)


@settings(EXAMPLES, max_examples=25)
@given(
    tokens=st.integers(1, 16),
    number=st.integers(1, 6),
    hidden=st.integers(1, 3),
    width=st.integers(1, 3),
    block_size=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(list(TYPES.values())),
    data=st.data(),
    schedule=SCHEDULES,
)
def test_as_float64(
    tokens: int,
    number: int,
    hidden: int,
    width: int,
    block_size: int,
    bits: int,
    dtype: Any,
    data: st.DataObject,
    schedule: Schedule,
) -> None:
    k = data.draw(st.integers(1, min(number, 8)))
    random = np.random.default_rng(schedule.seed)
    layer = Layer(number, hidden * block_size, width * block_size, bits, block_size)
    x = exact.activations(random, (tokens, hidden * block_size), dtype)
    answer = layer.checked(x, *routed(random, tokens, number, k, dtype), schedule=schedule)
    assert answer.launches == 2


def unevenly_routed(
    random: np.random.Generator, tokens: int, number: int, k: int, dtype: Any = np.float16
) -> tuple[Array, Array]:
    """Most tokens on few experts, some experts with none; a token may name one twice."""
    popularity = random.exponential(size=number) ** 3
    popularity[random.random(number) < 0.3] = 0
    chances = (popularity + 1e-9) / (popularity + 1e-9).sum()
    indices = random.choice(number, (tokens, k), p=chances).astype(np.int64)
    return indices, random.uniform(0.1, 0.9, (tokens, k)).astype(dtype)


@settings(EXAMPLES, max_examples=20)
@given(
    tokens=st.integers(17, 80),
    number=st.sampled_from([1, 3, 31, 32, 33, 70]),
    hidden=st.integers(1, 3),
    width=st.integers(1, 3),
    block_size=st.sampled_from([32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(list(TYPES.values())),
    k=st.integers(1, 4),
    even=st.booleans(),
    room=st.sampled_from([0, 64, 200]),
    schedule=SCHEDULES,
)
def test_prefill_as_float64(
    tokens: int,
    number: int,
    hidden: int,
    width: int,
    block_size: int,
    bits: int,
    dtype: Any,
    k: int,
    even: bool,
    room: int,
    schedule: Schedule,
) -> None:
    """room: how many rows of results the workspace holds; 0: all."""
    random = np.random.default_rng(schedule.seed)
    layer = Layer(number, hidden * block_size, width * block_size, bits, block_size)
    rows = hidden * block_size
    x = exact.activations(random, (tokens, rows), dtype)
    routing = routed if even and k <= number else unevenly_routed
    fewer = max(rows - room, 0) if room else 0
    answer = layer.checked(
        x,
        *routing(random, tokens, number, k, dtype),
        schedule=schedule,
        spare=-4 * tokens * k * fewer,
    )
    a_slice = room // 64 * 64 if fewer else rows
    assert answer.launches == 2 + 2 * -(-rows // a_slice)


@settings(EXAMPLES, max_examples=6)
@given(
    tokens=st.integers(17, 40),
    number=st.sampled_from([1, 40]),
    bits=st.sampled_from([4, 8]),
    schedule=SCHEDULES,
)
def test_no_thread_races_in_prefill(tokens: int, number: int, bits: int, schedule: Schedule) -> None:
    random = np.random.default_rng(schedule.seed)
    layer = Layer(number, 96, 64, bits)
    x = exact.activations(random, (tokens, 96), np.float16)
    layer.checked(
        x,
        *unevenly_routed(random, tokens, number, 2),
        schedule=schedule,
        flavour="thread",
        spare=-4 * tokens * 2 * 32,
    )


@settings(EXAMPLES, max_examples=8)
@given(tokens=st.integers(1, 9), bits=st.sampled_from([4, 8]), schedule=SCHEDULES)
def test_no_thread_races(tokens: int, bits: int, schedule: Schedule) -> None:
    random = np.random.default_rng(schedule.seed)
    layer = Layer(6, 96, 64, bits)
    x = exact.activations(random, (tokens, 96), np.float16)
    layer.checked(x, *routed(random, tokens, 6, 3), schedule=schedule, flavour="thread")


@pytest.mark.parametrize("tokens", [1, 7])
def test_true_size(tokens: int) -> None:
    """A layer of the 21B, with as many experts as its tokens can choose."""
    layer = Layer(12, 2560, 1536, 4, 128)
    random = np.random.default_rng(21)
    x = exact.activations(random, (tokens, 2560), np.float16)
    answer = layer.checked(x, *routed(random, tokens, 12, 6), flavour="plain")
    assert tokens > 1 or answer.weight_bytes == 6 * layer.expert_bytes


@pytest.mark.slow
def test_true_size_prefill() -> None:
    layer = Layer(12, 2560, 1536, 4, 128)
    random = np.random.default_rng(21)
    x = exact.activations(random, (17, 2560), np.float16)
    layer.checked(x, *routed(random, 17, 12, 6), flavour="plain")


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 16])
def test_only_chosen_experts_are_read_and_each_once(tokens: int) -> None:
    layer, random = Layer(32, 64, 96), np.random.default_rng(tokens)
    indices, scores = routed(random, tokens, 32, 4)
    answer = layer.checked(exact.activations(random, (tokens, 64), np.float16), indices, scores)
    # 64 and 192 rows are whole tiles: no row is read twice.
    assert answer.weight_bytes == layer.expert_bytes * len(np.unique(indices))


@pytest.mark.parametrize(("number", "shared_by"), [(32, 16), (3, 64)])
def test_prefill_reads_only_chosen_experts_and_once_for_a_tile(number: int, shared_by: int) -> None:
    layer, random = Layer(number, 64, 96), np.random.default_rng(number)
    indices, scores = unevenly_routed(random, 75, number, 2)
    answer = layer.checked(exact.activations(random, (75, 64), np.float16), indices, scores)
    tiles = sum(-(-np.count_nonzero(indices == expert) // shared_by) for expert in range(number))
    assert answer.weight_bytes == layer.expert_bytes * tiles


def test_prefill_of_more_choices_and_experts_than_a_warp_has_lanes() -> None:
    """640 choices are 40 a warp of the sort; 70 experts, each with choices, are found in three steps of 32."""
    layer, random = Layer(70, 32, 32), np.random.default_rng(1)
    indices, scores = routed(random, 40, 70, 16)
    assert len(np.unique(indices)) == 70
    layer.checked(exact.activations(random, (40, 32), np.float16), indices, scores)


@pytest.mark.parametrize("tokens", [16, 40])
def test_all_tokens_on_one_expert(tokens: int) -> None:
    layer, random = Layer(3, 64, 64), np.random.default_rng(1)
    indices, scores = np.full((tokens, 1), 2, np.int64), random.uniform(0, 1, (tokens, 1)).astype(np.float16)
    answer = layer.checked(exact.activations(random, (tokens, 64), np.float16), indices, scores)
    assert tokens == 40 or answer.weight_bytes == layer.expert_bytes


def test_an_expert_named_twice_counts_twice() -> None:
    layer, random = Layer(4, 64, 64), np.random.default_rng(1)
    indices = np.array([[1, 1, 3], [3, 0, 3]], np.int64)
    scores = random.uniform(0.1, 1, (2, 3)).astype(np.float16)
    layer.checked(exact.activations(random, (2, 64), np.float16), indices, scores)


def test_sixteen_tokens_of_sixteen_experts_each() -> None:
    layer, random = Layer(256, 32, 32), np.random.default_rng(1)
    indices = random.permutation(256).reshape(16, 16).astype(np.int64)
    scores = random.uniform(0.1, 1, (16, 16)).astype(np.float16)
    layer.checked(exact.activations(random, (16, 32), np.float16), indices, scores)


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("index", [-1, 5, 2**40, -(2**63)])
def test_an_index_that_is_no_experts_is_a_fault(tokens: int, index: int) -> None:
    layer, random = Layer(5, 64, 64), np.random.default_rng(1)
    x = exact.activations(random, (tokens, 64), np.float16)
    indices, scores = routed(random, tokens, 5, 2)
    good = layer.run(x, indices, scores).arrays["y"]
    indices[1, 1] = index
    answer = layer.run(x, indices, scores)
    assert answer.arrays["faults"][0] == 1
    assert np.isnan(answer.arrays["y"][1]).all()
    others = [t for t in range(tokens) if t != 1]
    assert (answer.arrays["y"][others] == good[others]).all()


@pytest.mark.parametrize("tokens", [4, 20])
@pytest.mark.parametrize("place", ["x", "scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_token(tokens: int, place: str, value: float) -> None:
    layer, random = Layer(5, 64, 64), np.random.default_rng(1)
    x = exact.activations(random, (tokens, 64), np.float16)
    indices, scores = routed(random, tokens, 5, 3)
    good = layer.run(x, indices, scores).arrays["y"]
    (x if place == "x" else scores)[2, 1] = value
    answer = layer.run(x, indices, scores)
    bad = answer.arrays["y"]
    assert answer.arrays["faults"][0] == (place == "scores" and np.isnan(value))
    assert not np.isfinite(bad[2]).any()
    others = [t for t in range(tokens) if t != 2]
    assert (bad[others] == good[others]).all()


@pytest.mark.parametrize("tokens", [9, 21])
def test_the_same_to_the_bit_in_every_order(tokens: int) -> None:
    layer, random = Layer(8, 256, 128, 4, 128), np.random.default_rng(1)
    x = exact.activations(random, (tokens, 256), np.float16)
    indices, scores = routed(random, tokens, 8, 4)
    answers = [
        layer.run(x, indices, scores, schedule=Schedule(order, copies, seed)).arrays["y"].tobytes()
        for order, copies, seed in [(0, 0, 1), (0, 1, 2), (1, 0, 3), (2, 1, 4)]
    ]
    assert len(set(answers)) == 1


def test_no_token_is_no_work() -> None:
    layer = Layer(2, 32, 32)
    empty = np.ones((0, 2), np.float16)
    assert layer.run(np.ones((0, 32), np.float16), empty.astype(np.int64), empty).launches == 0


def test_room_for_many_tokens_is_room_for_fewer() -> None:
    """So that a host can ask once, for the most."""
    sizes = {"hidden": 2560, "width": 1536, "experts": 64, "k": 6}
    needed = [
        workspace("ernie_moe_experts", {"type": 0, "bits": 4, "block_size": 128, "tokens": tokens, **sizes})
        for tokens in range(1, 4096, 7)
    ]
    assert needed == sorted(needed) and needed[0] == 2 * 6 * 1536
    assert needed[-1] < 4096 * 6 * 1536 * 2 + 2**25 + 2**20


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        (("tokens", "i32", -1), "tokens is -1; it must be 0 to"),
        (("experts", "i32", 0), "experts is 0"),
        (("gate_up", "u64", 8), "hidden, weights and workspace must start at a multiple of 16 bytes"),
        (("gate_up_scales", "u64", 2), "scales must start at a multiple of 4 bytes"),
        (("down_scales", "u64", 2), "scales must start at a multiple of 4 bytes"),
    ],
)
def test_refuses_a_number_or_a_place(instead: tuple[str, str, Any], message: str) -> None:
    layer, chosen = Layer(2, 32, 32), (np.zeros((2, 2), np.int64), np.ones((2, 2), np.float16))
    with pytest.raises(Refused, match=message):
        layer.run(np.ones((2, 32), np.float16), *chosen, instead=instead, spare=2**16)


def test_prefill_refuses_a_workspace_too_small() -> None:
    layer = Layer(2, 128, 32)
    x, scores = np.ones((20, 128), np.float16), np.ones((20, 1), np.float16)
    with pytest.raises(Refused, match="the experts need"):
        layer.run(x, np.zeros((20, 1), np.int64), scores, spare=-4 * 20 * 64 - 1)


@pytest.mark.parametrize(
    ("hidden", "width", "k", "spare", "message"),
    [
        (96, 64, 1, 0, "hidden is 96; it must be a multiple of the block, 64"),
        (64, 32, 1, 0, "the experts' width is 32; it must be a multiple of the block, 64"),
        (64, 64, 17, 0, "k is 17; it must be 1 to 16"),
        (64, 64, 2, -1, "the workspace has 255 bytes; the experts need 256"),
    ],
)
def test_refuses(hidden: int, width: int, k: int, spare: int, message: str) -> None:
    layer = Layer(2, hidden, width)
    layer.block_size = 64
    with pytest.raises(Refused, match=message):
        layer.run(
            np.ones((1, hidden), np.float16),
            np.zeros((1, k), np.int64),
            np.ones((1, k), np.float16),
            spare=spare,
        )
