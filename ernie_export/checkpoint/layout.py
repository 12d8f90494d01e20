"""The tensors that a config asks for, by their published names."""

from __future__ import annotations

from collections.abc import Container
from typing import Literal, get_args

from ernie_export.checkpoint.config import ErnieConfig

Shapes = dict[str, tuple[int, ...]]
Part = Literal["experts", "attention", "shared", "dense", "embedding", "head", "router", "norms"]
PARTS: tuple[Part, ...] = get_args(Part)

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def tensor_shapes(config: ErnieConfig, merged: Container[int] = ()) -> Shapes:
    """Name → shape of every tensor of the model; weights are [out, in].

    `merged` names the layers whose experts are stacked as transformers 5 holds them in memory.
    """
    hidden = config.hidden_size
    shapes: Shapes = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes |= _attention(config, f"{prefix}.self_attn")
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        if config.is_moe_layer(layer):
            shapes |= _experts(config, f"{prefix}.mlp", layer in merged)
        else:
            shapes |= _mlp(hidden, config.intermediate_size, f"{prefix}.mlp")
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def _attention(config: ErnieConfig, prefix: str) -> Shapes:
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    return {
        f"{prefix}.q_proj.weight": (query, config.hidden_size),
        f"{prefix}.k_proj.weight": (key_value, config.hidden_size),
        f"{prefix}.v_proj.weight": (key_value, config.hidden_size),
        f"{prefix}.o_proj.weight": (config.hidden_size, query),
    }


def _mlp(hidden: int, inner: int, prefix: str) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (inner, hidden),
        f"{prefix}.up_proj.weight": (inner, hidden),
        f"{prefix}.down_proj.weight": (hidden, inner),
    }


def _experts(config: ErnieConfig, prefix: str, merged: bool) -> Shapes:
    experts, hidden, inner = config.moe_num_experts, config.hidden_size, config.moe_intermediate_size
    shapes: Shapes = {
        f"{prefix}.gate.weight": (experts, hidden),
        f"{prefix}.moe_statics.e_score_correction_bias": (1, experts),
    }
    if merged:
        shapes[f"{prefix}.experts.gate_up_proj"] = (experts, 2 * inner, hidden)
        shapes[f"{prefix}.experts.down_proj"] = (experts, hidden, inner)
    else:
        for expert in range(experts):
            shapes |= _mlp(hidden, inner, f"{prefix}.experts.{expert}")
    if config.moe_num_shared_experts:
        shapes |= _mlp(hidden, config.shared_intermediate_size, f"{prefix}.shared_experts")
    return shapes


def published_name(name: str) -> str:
    """The published name of a tensor that is named as in transformers' module tree."""
    return name.replace(".mlp.gate.moe_statics.", ".mlp.moe_statics.")


def layer_of(name: str) -> int | None:
    """The decoder layer that a tensor of `tensor_shapes` belongs to."""
    return int(name.split(".")[2]) if name.startswith("model.layers.") else None


def part_of(name: str) -> Part:
    """The part of the model that a tensor of `tensor_shapes` belongs to."""
    if name == EMBEDDING:
        return "embedding"
    if name == HEAD:
        return "head"
    if "norm" in name:
        return "norms"
    if ".self_attn." in name:
        return "attention"
    if ".mlp.experts." in name:
        return "experts"
    if ".mlp.shared_experts." in name:
        return "shared"
    if ".mlp.gate.weight" in name or ".mlp.moe_statics." in name:
        return "router"
    return "dense"
