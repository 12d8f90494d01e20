from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins import exact
from tests.plugins.emulated import EXAMPLES, SCHEDULES, Refused, Schedule
from tests.plugins.kernels import TYPES, routing

Array = np.ndarray[Any, Any]


def transformers_router(x: Array, weight: Array, bias: Array, k: int, norm_min: float) -> tuple[Array, Array]:
    """The router of transformers' ERNIE on the same numbers: indices [T,k], scores [T,k] float32."""
    from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter

    config = SimpleNamespace(
        num_experts=len(weight), hidden_size=x.shape[1], num_experts_per_tok=k, moe_norm_min=norm_min
    )
    router = Ernie4_5_MoeTopKRouter(config)
    with torch.no_grad():
        router.weight.copy_(torch.from_numpy(weight))
        router.moe_statics.e_score_correction_bias.copy_(torch.from_numpy(bias)[None])
        _, scores, indices = router(torch.from_numpy(x.astype(np.float32)))
    return indices.numpy(), scores.numpy()


def checked(
    x: Array, weight: Array, bias: Array, k: int, schedule: Schedule, flavour: str = "address"
) -> None:
    answer = routing(x, weight, bias, k, schedule=schedule, flavour=flavour)
    indices, scores = answer.arrays["indices"], answer.arrays["scores"].astype(np.float32)
    their_indices, their_scores = transformers_router(x, weight, bias, k, 1e-12)
    # Two orders of summation may swap neighbours that fp32 can hardly tell apart, and no others.
    logits = x.astype(np.float64) @ weight.T.astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    choice = p / p.sum(-1, keepdims=True) + bias
    ours, theirs = (np.take_along_axis(choice, chosen, -1) for chosen in (indices, their_indices))
    assert np.abs(ours - theirs).max() < 1e-6
    assert all(len(set(row)) == k for row in indices.tolist())
    same = (np.sort(indices, -1) == np.sort(their_indices, -1)).all(-1, keepdims=True) & (
        indices == their_indices
    )
    assert same.mean() > 0.8
    rounding = 2.0**-10 if x.dtype == np.float16 else 2.0**-7
    assert np.allclose(scores[same], their_scores[same], rtol=rounding, atol=1e-7)
    assert answer.launches == 2


@settings(EXAMPLES, max_examples=30)
@given(
    tokens=st.integers(1, 20),
    hidden=st.integers(1, 24).map(lambda n: 8 * n),
    experts=st.integers(1, 256),
    data=st.data(),
    dtype=st.sampled_from(list(TYPES.values())),
    schedule=SCHEDULES,
)
def test_as_transformers_routes(
    tokens: int, hidden: int, experts: int, data: st.DataObject, dtype: Any, schedule: Schedule
) -> None:
    k = data.draw(st.integers(1, min(experts, 16)))
    random = np.random.default_rng(schedule.seed)
    x = exact.activations(random, (tokens, hidden), dtype)
    weight = random.standard_normal((experts, hidden)).astype(np.float32) / np.float32(np.sqrt(hidden))
    bias = random.permutation(np.linspace(0, 1, experts)).astype(np.float32)
    checked(x, weight, bias, k, schedule)


@pytest.mark.parametrize("flavour", ["plain", "thread"])
def test_true_size(flavour: str) -> None:
    random = np.random.default_rng(21)
    x = exact.activations(random, (3, 2560), np.float16)
    weight = random.standard_normal((64, 2560)).astype(np.float32) / 50
    checked(x, weight, np.linspace(0, 0.5, 64).astype(np.float32), 6, Schedule(1, 0, 5), flavour)


def test_of_equals_the_lower_index_comes_first() -> None:
    """As ONNX TopK has it; torch.topk promises nothing, so of its answer only the values are compared."""
    for experts, k in ((64, 6), (7, 7), (256, 16)):
        x = np.ones((5, 16), np.float16)
        weight = np.zeros((experts, 16), np.float32)
        bias = np.random.default_rng(k).integers(0, 3, experts).astype(np.float32)
        expected = np.argsort(-bias, kind="stable")[:k]
        answer = routing(x, weight, bias, k)
        assert (answer.arrays["indices"] == expected).all()
        theirs, scores = transformers_router(x, weight, bias, k, 1e-12)
        assert (bias[theirs] == bias[expected]).all()
        assert np.allclose(answer.arrays["scores"], scores, rtol=1e-3)


def test_the_bias_chooses_and_does_not_weigh() -> None:
    weight = np.eye(8, dtype=np.float32)
    bias = np.array([0, 0, 0, 0, 0, 0, 5, 4], np.float32)
    answer = routing(np.eye(8, dtype=np.float16)[:1], weight, bias, 2)
    assert answer.arrays["indices"].tolist() == [[6, 7]]
    assert answer.arrays["scores"].tolist() == [[0.5, 0.5]]


def test_scores_are_floored() -> None:
    """All that is chosen has next to no probability: divided by norm_min, not by it."""
    weight = np.array([[20.0] + [0] * 7, [0.0] * 8, [0.0] * 8], np.float32)
    bias = np.array([0, 3, 3], np.float32)
    x = np.ones((1, 8), np.float16)
    floored = routing(x, weight, bias, 2, 0.5).arrays["scores"]
    _, expected = transformers_router(x, weight, bias, 2, 0.5)
    assert np.allclose(floored, expected, atol=1e-7) and float(floored.max()) < 1e-7
    assert (routing(x, weight, bias, 2, 1e-12).arrays["scores"] == 0.5).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_indices_are_in_range_whatever_comes_in(value: float) -> None:
    random = np.random.default_rng(3)
    x = exact.activations(random, (4, 64), np.float16)
    x[1, 7] = value
    weight = random.standard_normal((40, 64)).astype(np.float32)
    bias = np.linspace(0, 1, 40).astype(np.float32)
    bad = routing(x, weight, bias, 5).arrays
    assert all(
        sorted(set(row)) == sorted(row) and min(row) >= 0 and max(row) < 40 for row in bad["indices"].tolist()
    )
    assert np.isnan(bad["scores"][1].astype(np.float32)).all()
    good = routing(np.where(np.isfinite(x), x, 0).astype(np.float16), weight, bias, 5).arrays
    others = [0, 2, 3]
    assert (bad["indices"][others] == good["indices"][others]).all()
    assert (bad["scores"][others] == good["scores"][others]).all()


def test_experts_biased_away_are_chosen_last() -> None:
    bias = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    answer = routing(np.ones((1, 8), np.float16), np.zeros((4, 8), np.float32), bias, 3)
    assert answer.arrays["indices"].tolist() == [[1, 3, 0]]


def test_no_token_is_no_work() -> None:
    answer = routing(np.ones((0, 8), np.float16), np.ones((4, 8), np.float32), np.zeros(4, np.float32), 2)
    assert answer.launches == 0


@pytest.mark.parametrize(
    ("hidden", "experts", "k", "spare", "message"),
    [
        (12, 4, 2, 0, "hidden is 12; it must be a multiple of 8"),
        (8, 257, 2, 0, "experts is 257; it must be 1 to 256"),
        (8, 4, 5, 0, "k is 5; it must be 1 to 16, and at most the 4 experts"),
        (8, 40, 17, 0, "k is 17; it must be 1 to 16, and at most the 40 experts"),
        (8, 4, 2, -1, "the workspace has 31 bytes; routing needs 32"),
    ],
)
def test_refuses(hidden: int, experts: int, k: int, spare: int, message: str) -> None:
    x, weight = np.ones((2, hidden), np.float16), np.ones((experts, hidden), np.float32)
    with pytest.raises(Refused, match=message):
        routing(x, weight, np.zeros(experts, np.float32), k, spare=spare)


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        (("weight", "u64", 8), "hidden and weight must start at a multiple of 16 bytes"),
        (("bias", "u64", 2), "bias and workspace must start at a multiple of 4 bytes"),
    ],
)
def test_refuses_a_place(instead: tuple[str, str, Any], message: str) -> None:
    x, weight = np.ones((2, 8), np.float16), np.ones((4, 8), np.float32)
    with pytest.raises(Refused, match=message):
        routing(x, weight, np.zeros(4, np.float32), 2, instead=instead)
