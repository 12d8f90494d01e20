"""Whether the native operators (engine/native), where a machine has them, take the graph of a recipe over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ernie_export.graph.weights import form_of
from ernie_export.plan.machine import CHUNK, HEAD
from ernie_export.plan.weights import initializers, part_of, shares_head
from ernie_export.quantize.formats import SMALL_FLOATS, packing

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.plan.setting import Setting
    from ernie_export.target import Target


def runs_natively(config: ErnieConfig, target: Target, setting: Setting) -> bool:
    """As engine/native_library.py decides of the graph itself, from its shapes alone; a kit runs without them."""
    if target.runtime != "onnxruntime-cpu" or target.is_kit or not setting.native or config.head_dim % HEAD:
        return False
    found, parts = False, setting.parts
    for name, (dtype, shape) in initializers(config, parts, 1):
        part, form = part_of(name), form_of(name, parts)
        if (
            name.endswith("scales")
            or form is None
            or (part == "embedding" and not shares_head(config, parts))
        ):
            continue
        if form.format in SMALL_FLOATS:
            return False
        if dtype == np.uint8:
            found = True
            if shape[-1] * 8 // packing(form)[0] % CHUNK:
                return False
        elif part == "experts":
            return False
    return found
