"""The multiple-choice knapsack: of every group one option, the least loss within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
UNITS = 1 << 17
"""Most steps that a budget is counted in."""


def least_loss(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int]:
    """Which option each group takes, by number: exact, by dynamic programming over what may be spent.

    What an option costs beyond the cheapest of its group is counted in units of the greatest common
    divisor of all of them.  Where that makes more than `UNITS`, units are larger and each cost is
    rounded up: the choice still keeps to the budget, and misses at most a `UNITS`th of it a group.

    Args:
        costs, losses: by group, then by option.

    Raises:
        ValueError: the cheapest options together cost more than the budget.
    """
    left = budget - sum(map(min, costs))
    if left < 0:
        raise ValueError(f"{-left} more than the budget")
    extra = [[cost - min(options) for cost in options] for options in costs]
    spent = min(left, sum(map(max, extra)))
    unit = max(math.gcd(*(cost for options in extra for cost in options)), -(-spent // UNITS), 1)
    room = spent // unit
    best = np.zeros(room + 1)
    taken = []
    for options, loss in zip(extra, losses, strict=True):
        steps = np.array([-(-cost // unit) for cost in options])
        tried = np.full((len(options), room + 1), np.inf)
        for at, step in enumerate(steps):
            if step <= room:
                tried[at, step:] = best[: room + 1 - step] + loss[at]
        taken.append((steps, tried.argmin(axis=0)))
        best = tried.min(axis=0)
    at, chosen = room, []
    for steps, choice in reversed(taken):
        chosen.append(int(choice[at]))
        at -= int(steps[chosen[-1]])
    return chosen[::-1]
