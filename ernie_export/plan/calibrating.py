"""What calibration holds in memory: a layer of the reference and what its linears read, then the rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_export.plan.measured import FLOAT, REFERENCE, ROUNDING
from ernie_export.plan.reference import layer_bytes, running_bytes

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.recipe import Calibration


def calibrating(config: ErnieConfig, settings: Calibration, threads: int) -> int:
    """Bytes, at the highest point of the hungriest layer; `threads` round a matrix each."""
    hidden = FLOAT * settings.tokens * config.hidden_size
    weights, running = layer_bytes(config), running_bytes(config)
    return (
        REFERENCE
        + hidden
        + max(_layer(config, at, weights[at] + running, threads) for at in range(len(weights)))
    )


def _layer(config: ErnieConfig, layer: int, observing: int, threads: int) -> int:
    """While its inputs are gathered, or when it has gone and its matrices are rounded."""
    widths = inputs(config, layer)
    hessians = FLOAT * sum(width**2 for width in widths)
    rounding = ROUNDING * sum(width**2 for width in sorted(widths, reverse=True)[:threads])
    return hessians + max(observing, rounding)


def inputs(config: ErnieConfig, layer: int) -> list[int]:
    """K of each H [K, K] that is gathered in a layer: matrices that read the same share one."""
    attention = [config.hidden_size, config.num_attention_heads * config.head_dim]
    if not config.is_moe_layer(layer):
        return [*attention, config.hidden_size, config.intermediate_size]
    experts = config.moe_num_experts * [config.hidden_size, config.moe_intermediate_size]
    shared = [config.hidden_size, config.shared_intermediate_size] if config.shared_intermediate_size else []
    return [*attention, *experts, *shared]
