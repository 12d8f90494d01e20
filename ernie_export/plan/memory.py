"""What an engine holds in memory, by runtime; the numbers are measured.py's.

ONNX Runtime on the CPU keeps no packed matrix where it lies in its file, but copies each into its
kernels' own order when it opens; the native operators copy none.  What TensorRT will hold is assumed, and
said to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from ernie_export.graph.weights import Stored, WeightFile, form_of
from ernie_export.plan.measured import (
    CACHE_BYTES,
    CPU_AGAIN,
    CPU_CHOSEN_EXPERT,
    CPU_DENSE,
    CPU_EVERY_EXPERT,
    CPU_FP16_LINEAR,
    CPU_MAPPED,
    CPU_OVERHEAD,
    CPU_PIECE,
    CPU_SCALE,
    CPU_SCORES,
    FLOAT,
    GPU_ACTIVATION,
    GPU_OVERHEAD,
    NATIVE_CACHE_BYTES,
    RTX_PIECE,
)
from ernie_export.plan.native import runs_natively
from ernie_export.plan.setting import Setting
from ernie_export.plan.weights import PARTS, Part, part_of, shares_head, weight_files

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.recipe import Parts
    from ernie_export.target import Target


class Memory(BaseModel):
    """Bytes."""

    model_config = ConfigDict(frozen=True)

    weights: dict[Part, int]
    """As the runtime holds them."""
    kv_cache: int
    activations: int
    overhead: int
    """The runtime itself, and its process."""
    running: int
    """All of these."""
    opening: int
    """At the highest point while the engine opens."""

    @property
    def peak(self) -> int:
        return max(self.running, self.opening)


def memory(config: ErnieConfig, target: Target, setting: Setting) -> Memory:
    """
    Raises:
        UserError: the recipe does not fit the shape.
    """
    files = weight_files(config, setting.parts, setting.context)
    on_cpu = target.runtime == "onnxruntime-cpu"
    weights: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for part, _, size in held(config, target, files, setting):
        weights[part] += size
    overhead = CPU_OVERHEAD if on_cpu else GPU_OVERHEAD
    all_weights = sum(weights.values())
    cache = kv_cache(config, target, setting)
    active = cpu_activations(config, target, setting) if on_cpu else gpu_activations(config, target, setting)
    return Memory(
        weights=weights,
        kv_cache=cache,
        activations=active,
        overhead=overhead,
        running=all_weights + cache + active + overhead,
        opening=overhead + opening(config, target, files, setting, weights),
    )


def kv_cache(config: ErnieConfig, target: Target, setting: Setting) -> int:
    """Allocated whole when a session starts; keys and values of every layer."""
    return setting.batch * setting.context * kv_bytes(config, target, setting)


def kv_bytes(config: ErnieConfig, target: Target, setting: Setting) -> int:
    """Of one token of one row."""
    width = config.num_key_value_heads * config.head_dim
    each = NATIVE_CACHE_BYTES if runs_natively(config, target, setting) else CACHE_BYTES[target.runtime]
    return 2 * config.num_hidden_layers * width * each


def held(
    config: ErnieConfig, target: Target, files: list[WeightFile], setting: Setting
) -> Iterator[tuple[Part, Stored, int]]:
    """What the runtime holds of each initializer, for which part; twice where it lies in its file and is copied."""
    if target.runtime != "onnxruntime-cpu" or runs_natively(config, target, setting):
        yield from ((part_of(stored.name), stored, stored.nbytes) for stored in initializers(files))
        return
    for stored in initializers(files):
        if part_of(stored.name) in CPU_MAPPED:
            yield part_of(stored.name), stored, stored.nbytes
    for part, stored in copied(config, files, setting):
        yield part, stored, cpu_copy(stored, setting)


def copied(config: ErnieConfig, files: list[WeightFile], setting: Setting) -> Iterator[tuple[Part, Stored]]:
    """The matrices and their scales that ONNX Runtime copies; the embedding where it is the head too."""
    for stored in initializers(files):
        part = part_of(stored.name)
        if part not in CPU_MAPPED:
            yield part, stored
        elif part == "embedding" and shares_head(config, setting.parts):
            yield "head", stored


def cpu_copy(stored: Stored, setting: Setting) -> int:
    """Bytes of the copy of a matrix, or of its scales, in the order of the kernels."""
    if stored.name.endswith("scales"):
        return CPU_SCALE * math.prod(stored.shape)
    form = form_of(stored.name, setting.parts)
    assert form is not None
    if form.format.startswith("int"):
        return stored.nbytes
    linear = part_of(stored.name) in ("attention", "shared", "dense")
    each = CPU_FP16_LINEAR if form.format == "fp16" and linear else FLOAT
    return each * math.prod(stored.shape)


def opening(
    config: ErnieConfig, target: Target, files: list[WeightFile], setting: Setting, weights: dict[Part, int]
) -> int:
    """What the weights take while the engine opens, at the highest point."""
    if target.runtime != "onnxruntime-cpu":
        return sum(weights.values())
    return 0 if runs_natively(config, target, setting) else cpu_opening(config, files, setting, weights)


def cpu_opening(
    config: ErnieConfig, files: list[WeightFile], setting: Setting, weights: dict[Part, int]
) -> int:
    """What the weights take while the engine opens, at the higher of two points.

    First every fp16 matrix becomes fp32 and is transposed, before the first form goes; then each
    matrix is copied into the order of the kernels, the largest last.
    """
    matrices = [each for _, each in copied(config, files, setting) if not each.name.endswith("scales")]
    half = [each for each in matrices if each.dtype == np.float16]
    as_fp32 = [FLOAT * math.prod(each.shape) for each in half]
    folding = 2 * sum(as_fp32) + max(as_fp32, default=0)
    copies = sum(size for part, size in weights.items() if part not in CPU_MAPPED)
    return max(folding, copies + max((each.nbytes for each in matrices if each not in half), default=0))


def cpu_activations(config: ErnieConfig, target: Target, setting: Setting) -> int:
    """While a piece of a prompt is fed: its widest layer, and the logits of the last token alone."""
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    scores = FLOAT * config.num_attention_heads * setting.context
    native = runs_natively(config, target, setting)
    most = CPU_PIECE if native else min(CPU_PIECE, CPU_SCORES // scores)
    piece = max(1, min(setting.prompt, most))
    widest = dense_width(config)
    for layer in config.moe_layers:
        every = runs_all_experts(setting.parts, layer)
        all_of_them = CPU_EVERY_EXPERT * config.moe_num_experts * inner + CPU_DENSE * hidden
        widest = max(widest, all_of_them if every else chosen_width(config))
    again = CPU_AGAIN if setting.batch > 1 else 1
    return FLOAT * (again * piece * widest + setting.batch * config.vocab_size)


def runs_all_experts(parts: Parts, layer: int) -> bool:
    """On the CPU: the portable body, which float experts have, runs all of them on every token."""
    return not parts.of("experts", layer).format.startswith("int")


def gpu_activations(config: ErnieConfig, target: Target, setting: Setting) -> int:
    """Assumed: every row of the prompt at once, logits of the last tokens alone.

    TensorRT for RTX asks for the experts of a layer in fp16, and for what they make of all tokens of a piece: of the
    21B 1,812 MB, where its builder says 1,816.7 (benchmarks/rtx.py, "experts of the 21B, prefill").
    """
    widest = max(dense_width(config), chosen_width(config))
    if target.runtime == "tensorrt_rtx" and config.moe_num_experts:
        inner = 3 * config.moe_num_experts * config.moe_intermediate_size
        unpacked = GPU_ACTIVATION * inner * (config.hidden_size + min(setting.context, RTX_PIECE))
        return unpacked + setting.batch * config.vocab_size * FLOAT
    return setting.batch * (setting.prompt * GPU_ACTIVATION * widest + config.vocab_size * FLOAT)


def dense_width(config: ErnieConfig) -> int:
    """Values that a layer without experts holds of a token."""
    return CPU_DENSE * (config.hidden_size + config.intermediate_size)


def chosen_width(config: ErnieConfig) -> int:
    """Values that the chosen experts hold of a token."""
    return config.moe_k * (CPU_CHOSEN_EXPERT * config.moe_intermediate_size + config.hidden_size)


def initializers(files: Iterable[WeightFile]) -> Iterator[Stored]:
    return (stored for file in files for stored in file.tensors)
