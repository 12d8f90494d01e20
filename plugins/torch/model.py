"""The model (ernie_export/model/ernie.py) with weights and a cache, run by the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ernie_export.model.ernie import Ernie
from plugins.torch.operators import cached_attention_in_place

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.recipe import Parts

#: Keys and values of a layer: each [B,kv,L,D], or with 8 bits (codes u8 [B,kv,L,D], scales fp32 [B,kv,L]).
Kept = Tensor | tuple[Tensor, Tensor]
Cache = list[tuple[Kept, Kept]]


def loaded(
    config: ErnieConfig, parts: Parts, weights: Mapping[str, Tensor], activations: torch.dtype
) -> Ernie:
    """The model on its weights, where these lie; its cache is written in place.

    weights: every buffer of the model by its name, as the weight files of a bundle hold them.
    activations: fp16 or bf16, what the operators read and give; between the layers it stays fp32.
    """
    model = Ernie(config, parts, len(weights["rope.cos"]), activations)
    model.load_state_dict(dict(weights), assign=True)
    for layer in model.layers:
        layer.attention.attend = attend_in_place
    return model.eval()


def empty_cache(
    config: ErnieConfig,
    batch: int,
    length: int,
    device: torch.device,
    activations: torch.dtype,
    bits: int = 16,
) -> Cache:
    shape = (batch, config.num_key_value_heads, length, config.head_dim)

    def empty() -> Kept:
        if bits == 16:
            return torch.zeros(shape, dtype=activations, device=device)
        codes = torch.zeros(shape, dtype=torch.uint8, device=device)
        return codes, torch.zeros(shape[:3], dtype=torch.float32, device=device)

    return [(empty(), empty()) for _ in range(config.num_hidden_layers)]


def slots(cache: Cache, begin: int, end: int) -> Cache:
    """A part of the batch's rows, the same memory."""

    def part(kept: Kept) -> Kept:
        return kept[begin:end] if isinstance(kept, Tensor) else (kept[0][begin:end], kept[1][begin:end])

    return [(part(key), part(value)) for key, value in cache]


def attend_in_place(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Kept,
    past_value: Kept,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    seqlens_k: Tensor,
    _total: Any,
    num_heads: int,
    _kv_num_heads: int,
    scale: float,
) -> tuple[Tensor, Kept, Kept]:
    """In the place of `operators.cached_attention`: the past is the present."""
    keys, key_scales = (past_key, None) if isinstance(past_key, Tensor) else past_key
    values, value_scales = (past_value, None) if isinstance(past_value, Tensor) else past_value
    output = cached_attention_in_place(
        query, key, value, keys, values, key_scales, value_scales, cos, sin, position_ids, seqlens_k,
        num_heads, scale,
    )  # fmt: skip
    return output, past_key, past_value
