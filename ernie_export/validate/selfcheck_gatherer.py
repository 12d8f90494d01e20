"""The self-check that a bundle takes along, gathered from what validation computes anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.validate.baseline import Tolerance, better_high
from ernie_export.validate.selfcheck import About, Bound, SelfCheck, routing_metrics

if TYPE_CHECKING:
    from ernie_export.reference.layers import Routing
    from ernie_export.validate.gates import Bounds
    from ernie_export.validate.metrics import LogitsComparison, RoutingComparison
    from ernie_export.validate.segments import Want

Array = np.ndarray[Any, Any]
PROMPTS, TOKENS = 4, 64
"""The beginnings of validation's windows: few enough for every device, many enough to tell sense from nonsense."""
LIKELIEST, SPREAD = 64, 64
ROOM = {
    "logits.kl_mean": "2x+1e-6",
    "logits.same_top1": "0.03",
    "logits.max_difference": "2x+1e-3",
    "routing.agreement": "0.03",
    "routing.largest_changed_gap": "2x+1e-5",
}
"""What another processor or runtime may lose on so few tokens, against the engine that was validated."""


class Gatherer:
    """Sees what the reference gives of validation's windows, and keeps a little of it."""

    def __init__(self, ids: Array):
        """ids [W,S] int64."""
        self._tokens = ids[:PROMPTS, :TOKENS].astype(np.int32)
        self._vocabulary = 0
        self._logits: dict[int, dict[str, Array]] = {}
        self._experts: dict[int, tuple[Array, Array]] = {}
        self._routed = (0, 0)

    def watching(self, want: Want) -> Want:
        """The same; what is asked of it is seen."""
        for layer, routing in want.routing.items():
            self._see_experts(layer, routing)
        if want.logits is None:
            return want
        give = want.logits

        def seen(window: int) -> Array:
            logits = give(window)
            if window < len(self._tokens):
                self._see_logits(window, logits[: self._tokens.shape[1]])
            return logits

        return replace(want, logits=seen)

    def _see_logits(self, window: int, logits: Array) -> None:
        vocabulary = self._vocabulary = logits.shape[-1]
        # Stable, so that equal logits have one order on every machine.
        order = np.argsort(-logits, -1, kind="stable")
        top, rest = order[:, :LIKELIEST], order[:, LIKELIEST:]
        others = np.take_along_axis(logits, rest, -1).astype(np.float64)
        largest = others.max(-1, keepdims=True, initial=-np.inf)
        with np.errstate(invalid="ignore", divide="ignore"):
            log_sum = np.log(np.exp(others - largest).sum(-1)) + largest[:, 0]
        self._logits[window] = {
            "top": top.astype(np.int32),
            "top_logits": np.take_along_axis(logits, top, -1).astype(np.float32),
            "rest": log_sum.astype(np.float32),
            "spread_logits": logits[:, _spread(vocabulary)].astype(np.float32),
        }

    def _see_experts(self, layer: int, routing: Routing) -> None:
        prompts, count = self._tokens.shape
        chosen, choice = routing.indices[:prompts, :count], routing.choice[:prompts, :count]
        self._routed = choice.shape[-1], chosen.shape[-1]
        # The chosen first, by their own choice, whatever became of equals; then the nearest of the others.
        first = choice.astype(np.float64)
        np.put_along_axis(first, chosen, np.take_along_axis(first, chosen, -1) + 1e6, -1)
        order = np.argsort(-first, -1, kind="stable")[..., : 2 * chosen.shape[-1]]
        self._experts[layer] = (
            order.astype(np.int16),
            np.take_along_axis(choice, order, -1).astype(np.float32),
        )

    def made(
        self,
        gates: Mapping[str, Bounds],
        logits: Sequence[LogitsComparison],
        routing: Mapping[int, Sequence[RoutingComparison]],
    ) -> SelfCheck:
        """The self-check of an engine that was held to `gates`, the windows compared as said."""
        kept = [self._logits[window] for window in range(len(self._tokens))]
        layers = sorted(self._experts)
        empty = np.zeros((0, *self._tokens.shape, 0))
        pairs = [self._experts[layer] for layer in layers]
        measured = self._measured(logits, routing)
        about = About(
            vocab_size=self._vocabulary,
            num_experts=self._routed[0],
            experts_per_token=self._routed[1],
            bounds={name: _bound(name, gates.get(name), value) for name, value in measured.items()},
        )
        return SelfCheck(
            about,
            tokens=self._tokens,
            **{name: np.stack([each[name] for each in kept]) for name in kept[0]},
            spread=_spread(self._vocabulary),
            layers=np.array(layers, np.int32),
            experts=np.stack([pair[0] for pair in pairs]) if pairs else empty.astype(np.int16),
            choice=np.stack([pair[1] for pair in pairs]) if pairs else empty.astype(np.float32),
        )

    def _measured(
        self, logits: Sequence[LogitsComparison], routing: Mapping[int, Sequence[RoutingComparison]]
    ) -> dict[str, float]:
        """What the engine that was validated has on these very tokens."""
        prompts, count = self._tokens.shape

        def beginnings(comparisons: Sequence[Any], field: str) -> Array:
            return np.concatenate([getattr(each, field)[:count] for each in comparisons[:prompts]])

        found = {
            "logits.kl_mean": float(beginnings(logits, "kl").mean()),
            "logits.same_top1": float(beginnings(logits, "same_top1").mean()),
            "logits.max_difference": float(beginnings(logits, "difference").max()),
        }
        if routing:
            same, gap = (
                np.concatenate([beginnings(compared, field) for compared in routing.values()])
                for field in ("same", "gap")
            )
            found |= routing_metrics(same, gap)
        return found


def _spread(vocabulary: int) -> Array:
    return np.unique(np.linspace(0, vocabulary - 1, SPREAD).astype(np.int32))


def _bound(name: str, gate: Bounds | None, measured: float) -> Bound:
    """The gate, or what was measured with room for another processor, whichever is looser."""
    tolerance = Tolerance.parse(ROOM[name])
    assert tolerance
    # Three digits: that the last ones differ from machine to machine is no difference of the bundle.
    room = float(f"{tolerance.bound(name, measured):.3g}")
    if better_high(name):
        return Bound(min=room if gate is None or gate.min is None else min(gate.min, room))
    return Bound(max=room if gate is None or gate.max is None else max(gate.max, room))
