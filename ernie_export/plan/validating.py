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
    RECORDED,
    REFERENCE,
)
from ernie_export.plan.reference import layer_bytes, running_bytes

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.plan.memory import Memory


def whole(config: ErnieConfig, engine: Memory) -> int:
    """Bytes; `engine`: of a window and the rows of a batch.

    It is open once while windows are compared, and twice while it is held against itself: as it ships, and
    showing its routers.  What the reference computed of every layer stays all the while.
    """
    kept = REFERENCE + int(RECORDED * config.num_hidden_layers * COMPARED_AT_ONCE * FLOAT * _states(config))
    weights = sum(engine.weights.values())
    comparing = _comparing(config) + engine.peak - engine.overhead
    against_itself = FLOAT * _head(config) + 2 * weights + engine.kv_cache + engine.activations
    return max(by_layer(config), kept + comparing, kept + against_itself)


def fits_whole(needed: int, free: int) -> bool:
    """Whether the engine is run whole where that takes `needed` bytes."""
    return needed <= MARGIN * free


def by_layer(config: ErnieConfig) -> int:
    """Bytes: the largest layer of the reference in fp32, or the head of both; a part of the engine takes less.

    The states between the layers stay, and they alone grow with the number of layers.
    """
    states = COMPARED * config.num_hidden_layers * COMPARED_AT_ONCE * config.hidden_size
    layer = max(layer_bytes(config)) + running_bytes(config)
    return REFERENCE + FLOAT * states + max(layer, _comparing(config))


def _comparing(config: ErnieConfig) -> int:
    """The head of both, and logits."""
    return FLOAT * (HEADS * _head(config) + LOGITS * COMPARED_AT_ONCE * config.vocab_size)


def _head(config: ErnieConfig) -> int:
    shapes = tensor_shapes(config)
    return max(math.prod(shape) for name, shape in shapes.items() if name in (EMBEDDING, HEAD))


def _states(config: ErnieConfig) -> int:
    """Values that the operators of a layer show of a token."""
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    inner = max(config.intermediate_size, config.shared_intermediate_size)
    return 8 * config.hidden_size + heads + 2 * inner
