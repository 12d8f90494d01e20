"""The names in the graph of what routers give."""

from __future__ import annotations

from collections.abc import Sequence


def routing_name(layer: int, what: str) -> str:
    """The name in the graph of what a router gives: "indices" or "scores"."""
    return f"layers.{layer}.routing.{what}"


def probe_names(moe_layers: Sequence[int]) -> list[str]:
    """What the engine must show to be compared."""
    return [routing_name(layer, what) for layer in moe_layers for what in ("indices", "scores")]
