from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.plan import knapsack
from ernie_export.plan.knapsack import least_loss

OPTIONS = st.lists(st.tuples(st.integers(0, 50), st.floats(0, 10)), min_size=1, max_size=3)
GROUPS = st.lists(OPTIONS, min_size=1, max_size=6)


def spent(groups, choice) -> int:
    return sum(options[at][0] for options, at in zip(groups, choice, strict=True))


def lost(groups, choice) -> float:
    return sum(options[at][1] for options, at in zip(groups, choice, strict=True))


def solve(groups, budget: int) -> list[int]:
    return least_loss(
        [[cost for cost, _ in options] for options in groups],
        [[loss for _, loss in options] for options in groups],
        budget,
    )


@given(GROUPS, st.integers(0, 300))
def test_no_other_choice_is_better(groups, budget: int) -> None:
    every = [
        choice
        for choice in product(*(range(len(options)) for options in groups))
        if spent(groups, choice) <= budget
    ]
    if not every:
        with pytest.raises(ValueError):
            solve(groups, budget)
        return
    choice = solve(groups, budget)
    assert spent(groups, choice) <= budget
    assert lost(groups, choice) == pytest.approx(min(lost(groups, other) for other in every))


@settings(deadline=None)
@given(GROUPS, st.integers(0, 300))
def test_coarse_units_keep_to_the_budget_and_miss_little(groups, budget: int) -> None:
    """As if each byte were a million, with units that do not divide it."""
    large = [[(cost * 1_000_003, loss) for cost, loss in options] for options in groups]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "UNITS", 300)
        try:
            choice = solve(large, budget * 1_000_003)
        except ValueError:
            return
    assert spent(large, choice) <= budget * 1_000_003
    # What rounding costs is no more than a smaller budget would, by a unit a group.
    less = max(
        sum(min(cost for cost, _ in options) for options in groups),
        budget - len(groups) * (budget // 300 + 2),
    )
    assert lost(groups, choice) <= lost(groups, solve(groups, less)) + 1e-9


def test_money_left_over_is_not_spent_on_worse() -> None:
    assert solve([[(1, 5.0), (9, 6.0)]], 100) == [0]


def test_by_how_much_it_cannot_be_met() -> None:
    with pytest.raises(ValueError, match="3 more than the budget"):
        solve([[(5, 0.0), (9, 0.0)], [(8, 0.0)]], 10)
