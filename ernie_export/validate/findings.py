"""What has been found so far while one engine is validated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_export.progress import Progress
    from ernie_export.validate.operators import LayerDrift, OperatorError
    from ernie_export.validate.report import Continuation, Histogram, LayerReport
    from ernie_export.validate.weights import WeightError


@dataclass
class Findings:
    progress: Progress
    metrics: dict[str, float] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    weights: list[WeightError] = field(default_factory=list)
    operators: list[OperatorError] = field(default_factory=list)
    largest: str = ""
    """Where activations go beyond fp16, or are largest."""
    drift: list[LayerDrift] = field(default_factory=list)
    kl_histogram: Histogram | None = None
    continuations: list[Continuation] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    claims: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds to the seconds of a stage."""
        begun = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - begun
