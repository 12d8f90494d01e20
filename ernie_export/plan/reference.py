"""What transformers' model holds while one of its layers runs, as validation and calibration run it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ernie_export.checkpoint.layout import layer_of, tensor_shapes
from ernie_export.plan.measured import FLOAT, REFERENCE_AT_ONCE, REFERENCE_HIDDEN, REFERENCE_INNER

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig


def layer_bytes(config: ErnieConfig) -> list[int]:
    """The weights of each decoder layer in fp32."""
    sizes = [0] * config.num_hidden_layers
    for name, shape in tensor_shapes(config).items():
        layer = layer_of(name)
        if layer is not None:
            sizes[layer] += FLOAT * math.prod(shape)
    return sizes


def running_bytes(config: ErnieConfig) -> int:
    """Beside its weights, while a layer runs a piece of the windows."""
    inner = max(config.intermediate_size, config.shared_intermediate_size)
    return FLOAT * REFERENCE_AT_ONCE * (REFERENCE_INNER * inner + REFERENCE_HIDDEN * config.hidden_size)
