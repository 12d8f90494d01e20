"""How far an export is from its reference, in numbers; numpy alone.

S tokens, V vocabulary, k experts a token out of E.  Everything is computed in float64.  A NaN or an
infinity in the export makes every number of that token as bad as it can be, never better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PIECE = 1 << 22
"""Logits that are held in float64 at once."""


@dataclass
class LogitsComparison:
    """Token by token, [S] each; the likelihoods are of the token that follows, [S − 1]."""

    kl: Array
    """KL(reference ‖ export) in nats."""
    same_top1: Array
    """Whether both find the same token likeliest."""
    top5_overlap: Array
    """The part of the reference's five likeliest tokens that are among the export's."""
    difference: Array
    """The largest absolute difference of a logit."""
    non_finite: Array
    """How many of the export's logits are NaN or infinite."""
    nll_reference: Array
    nll_export: Array


def compare_logits(reference: Array, export: Array, ids: Array) -> LogitsComparison:
    """Logits [S,V] of the tokens `ids` [S], piece by piece, so that a large vocabulary fits."""
    if reference.shape != export.shape:
        raise ValueError(f"logits of shape {reference.shape} and {export.shape} cannot be compared")
    rows = max(1, PIECE // reference.shape[1])
    following = np.append(ids[1:], 0)  # nothing follows the last: cut off below
    pieces = [
        _compare_piece(
            reference[at : at + rows].astype(np.float64),
            export[at : at + rows].astype(np.float64),
            following[at : at + rows],
        )
        for at in range(0, len(ids), rows)
    ]
    compared = LogitsComparison(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
    compared.nll_reference = compared.nll_reference[:-1]
    compared.nll_export = compared.nll_export[:-1]
    return compared


def _compare_piece(reference: Array, export: Array, following: Array) -> tuple[Array, ...]:
    """The fields of LogitsComparison for a few rows."""
    finite = np.isfinite(export).all(axis=-1)
    with np.errstate(invalid="ignore"):
        p, q = log_softmax(reference), log_softmax(export)
        kl = np.where(finite, np.maximum((np.exp(p) * (p - q)).sum(-1), 0), np.nan)  # rounding may go below 0
        difference = np.where(finite, np.abs(reference - export).max(-1), np.inf)
    at = np.arange(len(following)), following
    return (
        kl,
        finite & (reference.argmax(-1) == export.argmax(-1)),
        np.where(finite, _top_overlap(reference, export, min(5, reference.shape[1])), 0.0),
        difference,
        (~np.isfinite(export)).sum(-1),
        -p[at],
        np.where(finite, -q[at], np.nan),
    )


def log_softmax(logits: Array) -> Array:
    """log of the softmax along the last axis, in the dtype of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _top_overlap(reference: Array, export: Array, count: int) -> Array:
    """The part of the `count` likeliest tokens that both have, [S]."""
    chosen = [_members(np.argpartition(-x, count - 1)[:, :count], x.shape[1]) for x in (reference, export)]
    overlap: Array = (chosen[0] & chosen[1]).sum(-1) / count
    return overlap


def logits_metrics(windows: Sequence[LogitsComparison]) -> dict[str, float]:
    """The numbers of all windows together."""
    kl, top1, top5, difference, non_finite, nll_reference, nll_export = (
        np.concatenate([getattr(window, field) for window in windows])
        for field in LogitsComparison.__dataclass_fields__
    )
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(nll_reference.mean())), float(np.exp(nll_export.mean()))
    return {
        "logits.kl_mean": float(kl.mean()),
        "logits.kl_p99": float(np.percentile(kl, 99)),
        "logits.kl_max": float(kl.max()),
        "logits.same_top1": float(top1.mean()),
        "logits.top5_overlap": float(top5.mean()),
        "logits.max_difference": float(difference.max()),
        "logits.non_finite": float(non_finite.sum()),
        "perplexity.reference": perplexity[0],
        "perplexity.export": perplexity[1],
        "perplexity.ratio": perplexity[1] / perplexity[0],
    }


KL_EDGES = 10.0 ** (np.arange(-32, 5) / 4)
"""Nats: four bins a decade from 1e-8 to 10, the same for all exports, so that histograms can be compared."""


def kl_counts(windows: Sequence[LogitsComparison]) -> Array:
    """The tokens by KL: below the first of KL_EDGES, between each two, from the last on; NaN is with these."""
    kl = np.concatenate([window.kl for window in windows])
    return np.bincount(np.searchsorted(KL_EDGES, kl, side="right"), minlength=len(KL_EDGES) + 1)


@dataclass
class RoutingComparison:
    """The choices of one router, token by token, [S] each but `chosen`."""

    same: Array
    """Whether the same experts were chosen, in whatever order."""
    shared: Array
    """How many of the reference's k experts the export chose too, as a part of k."""
    gap: Array
    """Where the choice changed: the reference's score of the best expert that the export dropped,
    less that of the worst it took instead; else 0."""
    score_difference: Array
    """The largest absolute difference of the weight of an expert that both chose."""
    chosen: Array
    """[3,E] int64: for how many tokens the reference chose each expert, the export did, both did."""


def compare_routing(
    indices: tuple[Array, Array], scores: tuple[Array, Array], choice: Array
) -> RoutingComparison:
    """indices and scores [S,k] of (reference, export); choice [S,E]: by which the reference chose.

    An index that is out of range, or there twice, is no choice of an expert: it counts as a change
    with an infinite gap where nothing else was taken.
    """
    experts = choice.shape[-1]
    reference, export = (_members(chosen, experts) for chosen in indices)
    valid = ((indices[1] >= 0) & (indices[1] < experts)).all(-1)
    dropped, taken, both = reference & ~export, export & ~reference, reference & export
    same = valid & ~dropped.any(-1) & ~taken.any(-1)
    best = np.where(dropped, choice, -np.inf).max(-1)
    worst = np.where(taken, choice, np.inf).min(-1)
    with np.errstate(invalid="ignore"):
        gap = np.where(taken.any(-1) & dropped.any(-1), best - worst, np.inf)
        weights = [_spread(i, s, experts) for i, s in zip(indices, scores, strict=True)]
        difference = np.where(both, np.abs(weights[0] - weights[1]), 0).max(-1)
    return RoutingComparison(
        same=same,
        shared=both.sum(-1) / reference.sum(-1),
        gap=np.where(same, 0.0, gap),
        score_difference=np.where(np.isnan(difference), np.inf, difference),
        chosen=np.stack([reference.sum(0), export.sum(0), both.sum(0)]),
    )


def routing_metrics(comparisons: Sequence[RoutingComparison]) -> dict[str, float]:
    """The numbers of all choices in `comparisons` together: of one layer, or of all."""
    same, shared, gap, score_difference = (
        np.concatenate([getattr(comparison, field) for comparison in comparisons])
        for field in ("same", "shared", "gap", "score_difference")
    )
    return {
        "routing.agreement": float(same.mean()),
        "routing.experts": float(shared.mean()),
        "routing.largest_changed_gap": float(gap.max()),
        "routing.score_difference": float(score_difference.max()),
    }


@dataclass
class ExpertMetrics:
    """One layer, expert by expert."""

    expert_agreement: list[float | None]
    """Of the tokens for which either side chose the expert, the part for which both did; None: neither."""
    expert_load_reference: list[float]
    """The part of the tokens for which the reference chose it; k/E where all have the same."""
    expert_load: list[float]
    """The same of the export."""


def expert_metrics(comparisons: Sequence[RoutingComparison]) -> ExpertMetrics:
    """The choices in `comparisons` together, all of one layer."""
    reference, export, both = np.sum([comparison.chosen for comparison in comparisons], axis=0)
    tokens = sum(len(comparison.same) for comparison in comparisons)
    either = reference + export - both
    agreement = [float(a / b) if b else None for a, b in zip(both.tolist(), either.tolist(), strict=True)]
    return ExpertMetrics(agreement, (reference / tokens).tolist(), (export / tokens).tolist())


def _members(indices: Array, size: int) -> Array:
    """indices [S,k] → [S,size] bool; what is out of range is left out."""
    members = np.zeros((len(indices), size + 1), dtype=bool)
    inside = np.where((indices >= 0) & (indices < size), indices, size)
    np.put_along_axis(members, inside, True, axis=-1)
    return members[:, :size]


def _spread(indices: Array, scores: Array, size: int) -> Array:
    """scores [S,k] put to their experts, [S,size] float64."""
    spread = np.zeros((len(indices), size + 1))
    inside = np.where((indices >= 0) & (indices < size), indices, size)
    np.put_along_axis(spread, inside, scores.astype(np.float64), axis=-1)
    return spread[:, :size]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts share before they first differ."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)


def relative_difference(a: Sequence[Array], b: Sequence[Array]) -> float:
    """How far the logits `b` of a token are from `a`, both [tokens,V], in parts of the spread of `a`; inf where
    one is not finite.

    The largest over the tokens of ‖a − b‖ / ‖a − mean(a)‖: it says the same of logits of any size, and 1 or
    more where one has nothing of the other.
    """
    largest = 0.0
    for one, other in zip(a, b, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"shapes {one.shape} and {other.shape} differ")
        for token, again in zip(one, other, strict=True):
            if not (np.isfinite(token).all() and np.isfinite(again).all()):
                return float("inf")
            wanted = token.astype(np.float64)
            if distance := float(np.linalg.norm(wanted - again)):
                spread = float(np.linalg.norm(wanted - wanted.mean()))
                largest = max(largest, distance / spread if spread else float("inf"))
    return largest
