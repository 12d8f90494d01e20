"""The emulation finds each planted fault, says where it is, and passes the same kernel without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.plugins.emulated import Crashed, Schedule, call
from tests.plugins.kernels import TYPES

Array = np.ndarray[Any, Any]
ORDERS = [
    Schedule(order, copies, seed) for order, copies, seed in [(0, 0, 1), (1, 0, 2), (2, 1, 3), (0, 1, 4)]
]


def run(
    number: int, argument: int, schedule: Schedule, flavour: str = "address", given: Array | None = None
) -> Array:
    values = np.arange(64, dtype=np.float32) if given is None else given
    fields = [
        ("number", "i32", number),
        ("argument", "i32", argument),
        ("input", "in", values),
        ("out", "out", np.full(128, np.nan, np.float32)),
    ]
    return call("ernie_fault", fields, schedule, flavour, "libernie_faults.so").arrays["out"]


def found(number: int, argument: int, flavour: str, expected: Array | None = None) -> str:
    """What one of the orders says, or that it gives another result; the sound kernel passes all of them."""
    sound = [run(number, 0, schedule, flavour)[:64] for schedule in ORDERS]
    assert all(np.array_equal(one, sound[0], equal_nan=True) for one in sound)
    for schedule in ORDERS:
        try:
            result = run(number, argument, schedule, flavour)[:64]
        except Crashed as crash:
            return str(crash)
        if not np.array_equal(result, sound[0], equal_nan=True):
            return "another result"
    return "nothing"


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_barrier_changes_the_result_in_one_of_the_orders(missing: int) -> None:
    assert found(0, missing, "plain") == "another result"


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_barrier_is_a_race(missing: int) -> None:
    assert "data race" in found(0, missing, "thread")


@pytest.mark.parametrize(
    ("number", "argument", "said"),
    [
        (1, 320, "heap-buffer-overflow"),
        (2, 65, "heap-buffer-overflow"),
        (3, 1, "no thread can go on: some wait for others that never come"),
        (4, 1, "threads of a block meet at two barriers"),
        (5, 1, "reads lane 20, which is not in the mask 0000ffff"),
    ],
)
def test_says_what_is_wrong(number: int, argument: int, said: str) -> None:
    report = found(number, argument, "address")
    assert said in report and "faults.cu" in report


def test_lanes_are_not_in_step() -> None:
    assert found(6, 1, "plain") == "another result"
    assert "data race" in found(6, 1, "thread")


def test_a_copy_that_is_not_waited_for_is_not_there() -> None:
    assert found(7, 1, "plain") == "another result"


def test_a_copy_that_comes_too_early_is_seen() -> None:
    assert found(8, 1, "plain") == "another result"
    assert "data race" in found(8, 1, "thread")


def test_blocks_that_write_the_same_race() -> None:
    assert "data race" in found(9, 1, "thread")


@pytest.mark.parametrize("schedule", ORDERS)
def test_shuffle(schedule: Schedule) -> None:
    assert run(5, 0, schedule)[:64].tolist() == [3.0] * 32 + [35.0] * 32


@pytest.mark.parametrize("dtype", list(TYPES))
def test_mma_multiplies_matrices(dtype: str) -> None:
    random = np.random.default_rng(1)
    a, b = (random.standard_normal(shape).astype(TYPES[dtype]) for shape in ((16, 16), (16, 8)))
    c = random.standard_normal((16, 8)).astype(np.float32)
    given = np.concatenate([part.astype(np.float32).ravel() for part in (a, b, c)])
    d = run(10, list(TYPES).index(dtype), ORDERS[0], given=given).reshape(16, 8)
    assert np.allclose(d, a.astype(np.float64) @ b.astype(np.float64) + c, atol=1e-5)
