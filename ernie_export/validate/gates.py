"""What the numbers must be for an export to pass; the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class Bounds(Protocol):
    """A gate of a recipe; both bounds included."""

    @property
    def min(self) -> float | None: ...
    @property
    def max(self) -> float | None: ...


@dataclass(frozen=True)
class GateResult:
    name: str
    value: float | None
    """None: it was not measured."""
    min: float | None
    max: float | None
    passed: bool
    message: str


@dataclass(frozen=True)
class _Limit:
    min: float | None = None
    max: float | None = None


ALWAYS: dict[str, Bounds] = {"logits.non_finite": _Limit(max=0)}
"""No recipe can do without these, or soften them."""


def evaluate(metrics: Mapping[str, float], gates: Mapping[str, Bounds]) -> list[GateResult]:
    """One result for each gate, and for those in ALWAYS; what was not measured fails, and so does NaN."""
    return [
        _evaluate(name, metrics.get(name), bounds.min, bounds.max)
        for name, bounds in {**gates, **ALWAYS}.items()
    ]


def _evaluate(name: str, value: float | None, low: float | None, high: float | None) -> GateResult:
    def result(passed: bool, message: str) -> GateResult:
        return GateResult(name, value, low, high, passed, f"{name} {message}")

    if value is None:
        return result(False, "was not measured")
    if math.isnan(value):
        return result(False, "is not a number")
    if low is not None and not value >= low:
        return result(False, f"is {value:.6g}, and must be at least {low:.6g}")
    if high is not None and not value <= high:
        return result(False, f"is {value:.6g}, and must be at most {high:.6g}")
    return result(True, f"is {value:.6g}")
