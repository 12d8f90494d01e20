"""Reference and engine side by side, as two runners of NVIDIA Polygraphy.

This module defines subclasses of Polygraphy's, so import it only where a comparison is to be run.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import BaseCompareFunc, Comparator, IterationResult
from polygraphy.logger import G_LOGGER

from ernie_export.errors import WorkError
from ernie_export.validate.metrics import LogitsComparison, RoutingComparison, compare_logits, compare_routing
from ernie_export.validate.probes import probe_names, routing_name

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine
    from ernie_export.progress import Step
    from ernie_export.validate.segments import Segment, Want

Array = np.ndarray[Any, Any]
Outputs = OrderedDict[str, Array]


class _Runner(BaseRunner):  # type: ignore[misc]
    """input_ids [1,S] int64 and the number of the window → the tokens again, and for each MoE layer of a
    segment indices and scores [S,k]; logits [S,V] where it ends with them."""

    def get_input_metadata_impl(self) -> TensorMetadata:
        return TensorMetadata().add("input_ids", np.int64, (1, None)).add("window", np.int64, ())

    def infer_impl(self, feed_dict: dict[str, Array]) -> Outputs:
        begun = time.perf_counter()
        ids = feed_dict["input_ids"]
        outputs = OrderedDict(input_ids=ids, **self.run(ids, int(feed_dict["window"])))
        self.inference_time = time.perf_counter() - begun
        return outputs

    def run(self, ids: Array, window: int) -> dict[str, Array]:
        raise NotImplementedError


class ReferenceRunner(_Runner):
    """Beside what every runner gives, `layers.{i}.routing.choice` [S,E]."""

    def __init__(self, want: Want):
        super().__init__(name="transformers")
        self._want = want

    def run(self, ids: Array, window: int) -> dict[str, Array]:
        outputs = {"logits": self._want.logits(window)} if self._want.logits else {}
        for layer, routing in self._want.routing.items():
            for what in ("indices", "scores", "choice"):
                outputs[routing_name(layer, what)] = getattr(routing, what)[window]
        return outputs


class EngineRunner(_Runner):
    """A segment that was opened to show its routing; each window gets an empty cache."""

    def __init__(self, engine: Engine, segment: Segment, chain: Chain):
        super().__init__(name="engine")
        self._engine, self._segment, self._chain = engine, segment, chain

    def run(self, ids: Array, window: int) -> dict[str, Array]:
        session = self._engine.start(1, ids.shape[1])
        given = self._segment.given(self._chain.before[window] if self._chain.before else None)
        fed = session.feed([ids[0].tolist()], all_logits=True, given=given)
        if self._segment.exit in fed.probes[0]:
            self._chain.after.append(fed.probes[0][self._segment.exit])
        if window == 0:
            self._chain.first = fed.probes[0]
        return {**fed.probes[0], "logits": fed.logits[0]}


@dataclass
class Chain:
    """The engine left to itself, between two segments."""

    before: list[Array]
    """What the segment before made of each window; empty before the first."""
    after: list[Array] = field(default_factory=list)
    """What this one made of each."""
    first: dict[str, Array] = field(default_factory=dict)
    """All that is shown of the first window."""


@dataclass
class WindowComparison:
    logits: LogitsComparison | None
    """None where the segment ends with a state."""
    routing: dict[int, RoutingComparison]

    def __bool__(self) -> bool:
        """Polygraphy's question whether it matched; the gates say what is near enough, not this."""
        return self.logits is None or not self.logits.non_finite.any()


class CompareWindow(BaseCompareFunc):  # type: ignore[misc]
    """One window: keeps a few numbers a token, and lets go of the logits."""

    def __init__(self, step: Step):
        self._step = step

    def __call__(
        self, reference: IterationResult, export: IterationResult
    ) -> OrderedDict[str, WindowComparison]:
        ids = reference["input_ids"][0]
        if not np.array_equal(ids, export["input_ids"][0]):
            raise WorkError("Engine and reference were given different tokens", "Report this as a fault.")
        layers = [int(name.split(".")[1]) for name in reference if name.endswith("routing.choice")]
        missing = [name for name in probe_names(layers) if name not in export]
        if missing:
            raise WorkError(f"The engine does not show {missing[0]}", "Build the bundle again.")
        comparison = WindowComparison(
            logits=_compare_logits(reference, export, ids) if "logits" in reference else None,
            routing={layer: _compare_layer(layer, reference, export) for layer in layers},
        )
        self._step.advance()
        return OrderedDict(window=comparison)


def _compare_logits(reference: IterationResult, export: IterationResult, ids: Array) -> LogitsComparison:
    if not np.isfinite(reference["logits"]).all():
        raise WorkError("The checkpoint itself gives logits that are not finite", "Fetch it again.")
    return compare_logits(reference["logits"], export["logits"], ids)


def _compare_layer(layer: int, reference: IterationResult, export: IterationResult) -> RoutingComparison:
    def both(what: str) -> tuple[Array, Array]:
        return reference[routing_name(layer, what)], export[routing_name(layer, what)]

    return compare_routing(both("indices"), both("scores"), reference[routing_name(layer, "choice")])


def compare(
    want: Want, engine: Engine, segment: Segment, chain: Chain, windows: Array, step: Step
) -> list[WindowComparison]:
    """Both on each of `windows` [N,S] int64, one at a time: the memory does not grow with N."""

    def feed() -> Iterator[dict[str, Array]]:
        for number, ids in enumerate(windows):
            yield {"input_ids": ids[None], "window": np.array(number)}

    runners = [ReferenceRunner(want), EngineRunner(engine, segment, chain)]
    debugging = logging.getLogger("ernie_export").isEnabledFor(logging.DEBUG)
    with G_LOGGER.verbosity(G_LOGGER.VERBOSE if debugging else G_LOGGER.CRITICAL):
        results = Comparator.run(runners, feed(), streaming=True)
        (accuracy,) = Comparator.compare_accuracy(results, compare_func=CompareWindow(step))
    ((_, iterations),) = accuracy.items()
    return [iteration["window"] for iteration in iterations]
