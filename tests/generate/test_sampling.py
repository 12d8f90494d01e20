from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_export.errors import UserError, WorkError
from ernie_export.generate.sampling import Sampling

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def picks(sampling: Sampling, count: int = 4000, row: int = 0) -> list[int]:
    sampler = sampling.sampler(row)
    return [sampler.pick(LOGITS) for _ in range(count)]


def shares(ids: list[int]) -> np.ndarray:
    return np.bincount(ids, minlength=4) / len(ids)


def test_temperature_zero_takes_the_likeliest_and_of_equals_the_first() -> None:
    sampler = Sampling().sampler(0)
    assert sampler.pick(LOGITS) == 1
    assert sampler.pick(np.array([0, 2, 2], np.float32)) == 1


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5), np.array([1, 16, 4, 9]) / 30),
        (Sampling(temperature=1, top_k=2), np.array([0, 4, 0, 3]) / 7),
        (Sampling(temperature=1, top_p=0.75), np.array([0, 4, 2, 3]) / 9),
        (Sampling(temperature=1, top_p=0.65), np.array([0, 4, 0, 3]) / 7),
        (Sampling(temperature=1, top_p=0.01), [0, 1, 0, 0]),
        (Sampling(temperature=1, top_k=99), [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_tokens_come_as_often_as_their_probability_says(sampling: Sampling, expected: np.ndarray) -> None:
    found = shares(picks(sampling))
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert not found[np.array(expected) == 0].any()


def test_a_seed_and_a_row_give_the_same_tokens_again() -> None:
    assert picks(Sampling(1, seed=7), 50, row=2) == picks(Sampling(1, seed=7), 50, row=2)
    assert picks(Sampling(1, seed=7), 50, row=2) != picks(Sampling(1, seed=7), 50, row=3)
    assert picks(Sampling(1, seed=7), 50, row=2) != picks(Sampling(1, seed=8), 50, row=2)


@given(
    logits=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=30),
    temperature=st.floats(1e-3, 1e3),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1),
)
def test_any_finite_logits_give_a_token(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    token = Sampling(temperature, top_k, top_p).sampler(0).pick(np.array(logits, np.float32))
    assert 0 <= token < len(logits)


def test_an_excluded_token_never_comes() -> None:
    logits = np.array([-np.inf, 0, -np.inf], np.float32)
    assert {Sampling(5.0, seed=seed).sampler(0).pick(logits) for seed in range(50)} == {1}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_are_not_sampled_from(broken: float, temperature: float) -> None:
    with pytest.raises(WorkError, match="logits"):
        Sampling(temperature).sampler(0).pick(np.array([0, broken, 1], np.float32))


@pytest.mark.parametrize(
    "values",
    [
        *({"temperature": value} for value in (-1, np.nan, np.inf)),
        *({"top_p": value} for value in (0, 1.1, np.nan)),
        {"top_k": -1},
        {"seed": -1},
    ],
)
def test_values_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=str(next(iter(values.values())))):
        Sampling(**values)
