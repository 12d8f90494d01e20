"""A checkpoint as a GGUF file that llama.cpp reads: architecture ernie4_5-moe, no vocabulary, token ids alone.

Tensors are written one at a time, so that memory does not grow with the model.  `gguf` is the package in
llama.cpp's own source (gguf-py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export.checkpoint.checkpoint import Checkpoint

Array = np.ndarray[Any, Any]
ARCHITECTURE = "ernie4_5-moe"
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
ALWAYS_FP32 = ("norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias")


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    """Rows of K last, as numpy has it; GGUF notes it the other way round."""
    pieces: Callable[[], Iterator[Array]]
    """Its rows, piece by piece."""


def tensors(checkpoint: Checkpoint) -> Iterator[Tensor]:
    config = checkpoint.config

    def plain(source: str, name: str) -> Tensor:
        array = checkpoint.array(source)
        shape = array.reshape(-1).shape if name.endswith("bias") else array.shape
        return Tensor(name, tuple(shape), lambda: iter([checkpoint.array(source).reshape(shape)]))

    def experts(layer: int, kind: str) -> Tensor:
        first: Array = getattr(checkpoint.expert(layer, 0), kind)
        count = config.moe_num_experts

        def pieces() -> Iterator[Array]:
            return (getattr(checkpoint.expert(layer, expert), kind) for expert in range(count))

        return Tensor(f"blk.{layer}.ffn_{kind}_exps.weight", (count, *first.shape), pieces)

    yield plain("model.embed_tokens.weight", "token_embd.weight")
    yield plain("model.norm.weight", "output_norm.weight")
    if not config.tie_word_embeddings:
        yield plain("lm_head.weight", "output.weight")
    for layer in range(config.num_hidden_layers):
        for source in checkpoint.sources(f"model.layers.{layer}"):
            rest = source.removeprefix(f"model.layers.{layer}.")
            if rest in LAYER_NAMES:
                yield plain(source, f"blk.{layer}.{LAYER_NAMES[rest]}")
        if config.is_moe_layer(layer):
            yield from (experts(layer, kind) for kind in ("gate", "up", "down"))


def write(
    checkpoint: Checkpoint, path: Path, layers: str, embedding: str, gguf_py: Path, threads: int
) -> None:
    """`layers`, `embedding`: names of GGML types (`Q4_0`, `F16`, `F32`) for the matrices."""
    sys.path.insert(0, str(gguf_py))
    import gguf  # type: ignore[import-not-found]

    config = checkpoint.config
    if config.moe_layer_interval != 1:
        raise SystemExit("llama.cpp's GGUF of ERNIE wants every layer from the first MoE layer on to be one")
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_name("synthetic")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.moe_num_experts)
    writer.add_expert_used_count(config.moe_k)
    writer.add_interleave_moe_layer_step(1)
    writer.add_leading_dense_block_count(config.moe_layer_start_index)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.shared_intermediate_size:
        writer.add_expert_shared_count(config.moe_num_shared_experts)
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    every = list(tensors(checkpoint))
    kinds = {}
    for tensor in every:
        single = len(tensor.shape) == 1 or tensor.name.endswith(ALWAYS_FP32)
        name = (
            "F32"
            if single
            else embedding
            if tensor.name in ("token_embd.weight", "output.weight")
            else layers
        )
        kind = kinds[tensor.name] = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        *outer, columns = tensor.shape
        stored = (*outer, columns // block * size)
        count = int(np.prod(stored))
        # What the writer calls a shape is in bytes where a type packs several weights.
        shape = stored if block > 1 else tensor.shape
        writer.add_tensor_info(
            tensor.name, shape, np.dtype(np.uint8 if block > 1 else np.float32), count, kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with ThreadPoolExecutor(threads) as pool:
        for number, tensor in enumerate(every):
            kind = kinds[tensor.name]

            def packed(piece: Array, kind: Any = kind) -> Array:
                rows: Array = gguf.quants.quantize(np.asarray(piece, np.float32), kind)
                return rows

            parts = list(pool.map(packed, tensor.pieces()))
            writer.write_tensor_data(parts[0] if len(parts) == 1 else np.stack(parts))
            if sys.stderr.isatty():
                print(f"\r{path.name}: tensor {number + 1} of {len(every)} ", end="", file=sys.stderr)
    writer.close()
