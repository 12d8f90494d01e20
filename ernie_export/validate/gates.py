"""What the numbers must be for an export to pass; it needs nothing that is not in Python itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ernie_export.errors import UserError
from ernie_export.nearest import did_you_mean


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
class Limit:
    min: float | None = None
    max: float | None = None


ALWAYS: dict[str, Bounds] = {"logits.non_finite": Limit(max=0.0)}
"""No recipe can do without these, or soften them."""


METRICS = (
    "logits.kl_mean", "logits.kl_p99", "logits.kl_max", "logits.same_top1", "logits.top5_overlap",
    "logits.max_difference", "logits.non_finite",
    "routing.agreement", "routing.experts", "routing.largest_changed_gap", "routing.score_difference",
    "perplexity.reference", "perplexity.export", "perplexity.ratio",
    "greedy.agreement", "greedy.agreement_min",
    "decode.max_difference", "batch.max_difference", "probes.max_difference",
    "operators.exact_error", "operators.routing_error", "operators.core_error", "operators.attention_error",
    "operators.dense_error", "operators.shared_error", "operators.experts_error", "operators.cache_error",
    "operators.head_error", "operators.embedding_error",
    "weights.misplaced", "weights.relative_error", "weights.block_error",
    "activations.largest", "memory.peak_bytes",
)  # fmt: skip
"""All that validation measures of a mixture of experts; of a dense model, less."""


def require_known(names: Iterable[str]) -> None:
    """Find before the work a gate that nothing could pass.

    Raises:
        UserError: nothing is measured under one of the names.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(
                f"The recipe has a gate on {name}, which is not measured", did_you_mean(name, METRICS)
            )


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
