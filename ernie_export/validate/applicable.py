"""Which of a recipe's gates say something of a checkpoint: a gate on what it does not have says nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ernie_export.validate.gates import Limit

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.recipe import Parts
    from ernie_export.validate.gates import Bounds

QUALITY = (
    "logits.kl_",
    "logits.same_top1",
    "logits.top5_overlap",
    "routing.agreement",
    "routing.experts",
    "perplexity.",
    "greedy.",
)
"""Beginnings of the metrics that tell how much of what the model knows is left."""
LEARNT = math.log(2)
"""Nats a token that a model must be better than chance, to be a model of the text."""
HALF = 2e-3
"""Relative error of an operator in fp16: a few of its last digits (2⁻¹¹ each)."""
OVER_CACHE = ("operators.core_", "operators.cache_")
"""Beginnings of what is rounded where the KV cache alone is fp16."""


def applicable(
    gates: Mapping[str, Bounds],
    config: ErnieConfig,
    parts: Parts | None,
    metrics: Mapping[str, float],
    opened_whole: bool = True,
) -> tuple[dict[str, Bounds], list[str]]:
    """The gates that apply, and a note for each reason why others do not.

    Gates on quality ask how much of what was learnt is left when weights are rounded to few bits.
    Where the checkpoint itself, as transformers runs it, does not tell the text from chance, there is
    nothing to be left: its likeliest token and its experts are ties that any rounding turns.  Gates on
    operators, weights and consistency hold whatever the weights are, and those on quality do too where
    none is rounded to few bits.  A text can be written only where the engine was opened whole.
    """
    reasons: dict[str, list[str]] = {}

    def why_not(name: str) -> str | None:
        if not config.moe_layers and name.startswith(
            ("routing.", "operators.routing_", "operators.experts_")
        ):
            return "the checkpoint has no experts"
        if not config.moe_num_shared_experts and name.startswith("operators.shared_"):
            return "the checkpoint has no shared experts"
        if len(config.moe_layers) == config.num_hidden_layers and name.startswith("operators.dense_"):
            return "the checkpoint has no dense layers"
        if not opened_whole and name.startswith("greedy."):
            return "the whole engine was not opened"
        if untold and name.startswith(QUALITY):
            return untold
        return None

    untold = _knows_nothing(config, metrics) if parts and _rounds_to_few_bits(parts) else None
    kept = {}
    for name, gate in gates.items():
        if (reason := why_not(name)) is None:
            kept[name] = gate
        else:
            reasons.setdefault(reason, []).append(name)
    return kept, [
        f"{', '.join(names)} {'does' if len(names) == 1 else 'do'} not apply: {reason}"
        for reason, names in reasons.items()
    ]


def with_attention(gates: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """With a gate on attention itself: what must be exact includes it where a recipe says nothing of it alone."""
    exact = gates.get("operators.exact_error")
    return {"operators.core_error": exact, **gates} if exact else dict(gates)


def in_half_precision(
    gates: Mapping[str, Bounds], which: tuple[str, ...] = ("operators.",)
) -> dict[str, Bounds]:
    """The gates for a graph that computes in fp16: what asks for fp32's last digits asks for fp16's.

    Routing, the embedding and the weights are not rounded, and their gates stay.

    Args:
        which: beginnings of what is rounded, all operators (attention, and prefill, are fp16) or `OVER_CACHE`.
    """
    stay = ("operators.routing_", "operators.embedding_")
    result = dict(gates)
    for name, gate in gates.items():
        if name.startswith(which) and not name.startswith(stay) and gate.max is not None:
            result[name] = Limit(gate.min, max(gate.max, HALF))
    return result


def _rounds_to_few_bits(parts: Parts) -> bool:
    return any(form.format not in ("fp32", "fp16") for form in parts.named().values())


def _knows_nothing(config: ErnieConfig, metrics: Mapping[str, float]) -> str | None:
    perplexity, chance = metrics.get("perplexity.reference", 0.0), config.vocab_size
    if not perplexity > chance / math.exp(LEARNT):  # so NaN keeps the gates
        return None
    return (
        f"the checkpoint does not know this text (perplexity {perplexity:.0f}, by chance {chance}), "
        "so nothing can be said of quality"
    )
