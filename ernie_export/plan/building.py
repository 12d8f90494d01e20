"""What a build needs of the machine that builds: memory at each stage's highest point, and disk."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ernie_export.checkpoint.layout import EMBEDDING, layer_of, part_of, tensor_shapes
from ernie_export.plan import validating
from ernie_export.plan.measured import FINITE, PIECES, TRACE, TRACE_LAYER
from ernie_export.plan.memory import Memory
from ernie_export.plan.setting import Setting
from ernie_export.quantize.formats import FLOATS, packing
from ernie_export.recipe import PARTS, PartFormat

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig


class Building(BaseModel):
    """Bytes of anonymous memory, which mapped files do not count to."""

    model_config = ConfigDict(frozen=True)

    trace: int
    weights: int
    validation: int
    """Of the way that takes less: the engine whole, or layer by layer."""
    peak: int
    disk: int
    """Of the weight files."""


def building(
    config: ErnieConfig, setting: Setting, engine: Memory, disk: int, threads: int | None = None
) -> Building:
    """`engine`: what is built, while it is validated; `threads` of the weight writer, None for every core."""
    shapes = tensor_shapes(config)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    trace = TRACE + TRACE_LAYER * config.num_hidden_layers
    packed = sorted(packed_bytes(config, setting, sizes), reverse=True)
    threads = threads or len(os.sched_getaffinity(0))
    weights = trace + sum(packed[:threads]) + threads * PIECES
    validate = trace - TRACE + min(validating.whole(config, engine), validating.by_layer(config))
    return Building(
        trace=trace, weights=weights, validation=validate, peak=max(trace, weights, validate), disk=disk
    )


def packed_bytes(config: ErnieConfig, setting: Setting, sizes: dict[str, int]) -> list[int]:
    """What each matrix takes while it is packed; the head again where it has another format."""
    found = [
        packed(setting.parts.of(part, layer_of(name)), size)
        for name, size in sizes.items()
        if (part := part_of(name)) in PARTS
    ]
    if config.tie_word_embeddings:
        found.append(packed(setting.parts.head, sizes[EMBEDDING]))
    return found


def packed(form: PartFormat, weights: int) -> int:
    """The stored form, and for floats a byte a weight to see that each is finite."""
    bits, _ = packing(form)
    return weights * bits // 8 if bits else weights * (FLOATS[form.format].itemsize + FINITE)
