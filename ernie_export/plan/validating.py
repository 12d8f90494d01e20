"""What validation holds in memory: the reference one layer at a time, and the engine whole or layer by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ernie_export.checkpoint.layout import EMBEDDING, HEAD, tensor_shapes
from ernie_export.plan.measured import (
    COMPARED,
    COMPARED_AT_ONCE,
    FLOAT,
    HEADS,
    LOGITS,
    MARGIN,
    REFERENCE,
)
from ernie_export.plan.reference import layer_bytes, running_bytes

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.plan.memory import Memory


def whole(config: ErnieConfig, engine: Memory) -> int:
    """Bytes; the engine is open twice: as it ships, and showing its routers."""
    engines = engine.opening + sum(engine.weights.values())
    recorded = config.num_hidden_layers * COMPARED_AT_ONCE * FLOAT * _states(config)
    return max(by_layer(config), REFERENCE + engines + recorded)


def fits_whole(needed: int, free: int) -> bool:
    """Whether the engine is run whole where that takes `needed` bytes."""
    return needed <= MARGIN * free


def by_layer(config: ErnieConfig) -> int:
    """Bytes: the largest layer of the reference in fp32, or the head of both; a part of the engine takes less.

    The states between the layers stay, and they alone grow with the number of layers.
    """
    shapes = tensor_shapes(config)
    head = max(math.prod(shape) for name, shape in shapes.items() if name in (EMBEDDING, HEAD))
    states = COMPARED * config.num_hidden_layers * COMPARED_AT_ONCE * config.hidden_size
    logits = LOGITS * COMPARED_AT_ONCE * config.vocab_size
    layer = max(layer_bytes(config)) + running_bytes(config)
    return REFERENCE + FLOAT * states + max(layer, FLOAT * (HEADS * head + logits))


def _states(config: ErnieConfig) -> int:
    """Values that the operators of a layer show of a token."""
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    inner = max(config.intermediate_size, config.shared_intermediate_size)
    return 8 * config.hidden_size + heads + 2 * inner
