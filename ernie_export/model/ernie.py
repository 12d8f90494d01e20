"""ERNIE-4.5 as it is traced: one small model that can be read in a sitting.

Its weights live on the meta device: the trace sees shapes and dtypes, never a byte.  Buffer names
(`layers.3.experts.gate_up`) are the names of the initializers in the graph and of the tensors in
the weight files.  Letters in shapes as in operators.py; T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ernie_export.model import operators
from ernie_export.quantize.formats import packing, stored_as, stored_names

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.recipe import PartFormat, Parts

ACTIVATIONS = torch.float32


def rows(name: str, shape: tuple[int, ...], form: PartFormat) -> dict[str, Tensor]:
    """The stored form of weights [..., N, K]: the weights themselves, and their scales if quantized."""
    return {
        title: torch.empty(size, dtype=getattr(torch, dtype.name), device="meta")
        for title, (dtype, size) in zip(stored_names(name), stored_as(form, shape), strict=False)
    }


class Stored(nn.Module):
    """A module whose weights are buffers in one stored form."""

    weight: Tensor
    scales: Tensor
    matrix_scales: Tensor | None
    gate_up: Tensor
    gate_up_scales: Tensor
    gate_up_matrix_scales: Tensor | None
    down: Tensor
    down_scales: Tensor
    down_matrix_scales: Tensor | None

    def __init__(self, form: PartFormat, **shapes: tuple[int, ...]):
        super().__init__()
        self.bits, self.block_size = packing(form)
        for name, shape in shapes.items():
            values = rows(name, shape, form)
            for stored in stored_names(name):
                self.register_buffer(stored, values.get(stored))


class Matrix(Stored):
    """N rows of K columns, stored as `weight` (and `scales`)."""

    def __init__(self, outputs: int, inputs: int, form: PartFormat):
        super().__init__(form, weight=(outputs, inputs))

    @property
    def packed(self) -> tuple[Tensor, Tensor, int, int, Tensor | None]:
        return self.weight, self.scales, self.bits, self.block_size, self.matrix_scales

    def multiply(self, x: Tensor) -> Tensor:  # [B,S,K] → [B,S,N]
        if self.bits:
            return operators.quantized_linear(x, *self.packed)
        return F.linear(x, self.weight.to(x.dtype))


class Linear(Matrix):
    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x)


class Embedding(Matrix):
    """The rows of the vocabulary; `multiply` makes the same rows the head, when both are tied and stored alike."""

    def forward(self, ids: Tensor) -> Tensor:  # [B,S] → [B,S,H]
        if not self.bits:
            return F.embedding(ids, self.weight).to(ACTIVATIONS)
        return operators.quantized_embedding(ids, *self.packed)


class Norm(nn.Module):
    """What stands between the residual stream, always fp32, and the operators, which read `activations`."""

    weight: Tensor

    def __init__(self, size: int, eps: float, activations: torch.dtype):
        super().__init__()
        self.eps, self.activations = eps, activations
        self.register_buffer("weight", torch.empty(size, dtype=torch.float32, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x, list(self.weight.shape), self.weight, self.eps)
        return y if self.activations == y.dtype else y.to(self.activations)


class Mlp(nn.Module):
    def __init__(self, hidden: int, width: int, form: PartFormat):
        super().__init__()
        self.gate = Linear(width, hidden, form)
        self.up = Linear(width, hidden, form)
        self.down = Linear(hidden, width, form)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Router(nn.Module):
    """Always fp32, as in ERNIE: the correction bias moves the choice and never the weight."""

    weight: Tensor
    bias: Tensor

    def __init__(self, config: ErnieConfig):
        super().__init__()
        self.k, self.norm_min = config.moe_k, config.moe_norm_min
        shape = (config.moe_num_experts, config.hidden_size)
        self.register_buffer("weight", torch.empty(shape, dtype=torch.float32, device="meta"))
        self.register_buffer("bias", torch.empty(shape[0], dtype=torch.float32, device="meta"))

    def forward(self, x: Tensor) -> operators.Pair:  # [B,S,H] → indices, scores [B,S,k]
        return operators.moe_routing(x, self.weight, self.bias, self.k, self.norm_min)


class Experts(Stored):
    def __init__(self, config: ErnieConfig, form: PartFormat):
        count, hidden, width = config.moe_num_experts, config.hidden_size, config.moe_intermediate_size
        super().__init__(form, gate_up=(count, 2 * width, hidden), down=(count, hidden, width))

    def forward(self, x: Tensor, indices: Tensor, scores: Tensor) -> Tensor:
        if not self.bits:
            return operators.moe_experts_float(x, indices, scores, self.gate_up, self.down)
        return operators.moe_experts(
            x, indices, scores, self.gate_up, self.gate_up_scales, self.down, self.down_scales,
            self.bits, self.block_size, self.gate_up_matrix_scales, self.down_matrix_scales,
        )  # fmt: skip


class Attention(nn.Module):
    attend: Callable[..., operators.Triple] = operators.cached_attention

    def __init__(self, config: ErnieConfig, form: PartFormat):
        super().__init__()
        hidden, width = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = width**-0.5
        self.q = Linear(self.heads * width, hidden, form)
        self.k = Linear(self.kv_heads * width, hidden, form)
        self.v = Linear(self.kv_heads * width, hidden, form)
        self.o = Linear(hidden, self.heads * width, form)

    def forward(
        self, x: Tensor, past_key: Tensor, past_value: Tensor, rope: Rope, where: operators.Triple
    ) -> operators.Triple:
        output, key, value = self.attend(
            self.q(x), self.k(x), self.v(x), past_key, past_value, rope.cos, rope.sin, *where,
            self.heads, self.kv_heads, self.scale,
        )  # fmt: skip
        return self.o(output), key, value


class Rope(nn.Module):
    """Tables of cos and sin for every position, fp32: θ^(−2j/D) times the position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ErnieConfig, context: int):
        super().__init__()
        for name in ("cos", "sin"):
            table = torch.empty(context, config.head_dim // 2, dtype=torch.float32, device="meta")
            self.register_buffer(name, table)


class Layer(nn.Module):
    def __init__(self, config: ErnieConfig, parts: Parts, index: int, activations: torch.dtype):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_norm = Norm(hidden, eps, activations)
        self.attention = Attention(config, parts.of("attention", index))
        self.post_attention_norm = Norm(hidden, eps, activations)
        self.mlp = self.router = self.experts = self.shared = None
        if not config.is_moe_layer(index):
            self.mlp = Mlp(hidden, config.intermediate_size, parts.of("dense", index))
            return
        self.router = Router(config)
        self.experts = Experts(config, parts.of("experts", index))
        if config.shared_intermediate_size:
            self.shared = Mlp(hidden, config.shared_intermediate_size, parts.of("shared", index))

    def feed_forward(self, x: Tensor) -> Tensor:
        if self.router is None or self.experts is None:
            return self.mlp(x)  # type: ignore[misc]
        y = self.experts(x, *self.router(x))
        return y if self.shared is None else y + self.shared(x)

    def forward(
        self, x: Tensor, past_key: Tensor, past_value: Tensor, rope: Rope, where: operators.Triple
    ) -> operators.Triple:
        attended, key, value = self.attention(self.input_norm(x), past_key, past_value, rope, where)
        x = x + attended
        return x + self.feed_forward(self.post_attention_norm(x)), key, value


class Ernie(nn.Module):
    """input_ids [B,S], attention_mask [B,total], position_ids [B,S], past keys and values
    [B,kv,P,D] layer by layer → logits [B,S,V], present keys and values [B,kv,L,D].

    activations: the dtype that the operators read and give; what is traced is fp32."""

    def __init__(
        self, config: ErnieConfig, parts: Parts, context: int, activations: torch.dtype = torch.float32
    ):
        super().__init__()
        vocab, hidden = config.vocab_size, config.hidden_size
        self.embedding = Embedding(vocab, hidden, parts.embedding)
        self.rope = Rope(config, context)
        self.layers = nn.ModuleList(
            Layer(config, parts, i, activations) for i in range(config.num_hidden_layers)
        )
        self.norm = Norm(hidden, config.rms_norm_eps, activations)
        shared = config.tie_word_embeddings and parts.head == parts.embedding
        self.head = None if shared else Linear(vocab, hidden, parts.head)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        x, present = self.states(input_ids, attention_mask, position_ids, past)
        return self.logits(x), present

    def states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """What the last layer gives, [B,S,H], and the cache."""
        seqlens_k = (attention_mask.sum(dim=-1) - 1).to(torch.int32)
        total = torch.scalar_tensor(attention_mask.shape[1], dtype=torch.int32)
        x = self.embedding(input_ids)
        present = []
        for layer, (key, value) in zip(self.layers, past, strict=True):
            x, key, value = layer(x, key, value, self.rope, (position_ids, seqlens_k, total))
            present.append((key, value))
        return x, present

    def logits(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.embedding.multiply(x) if self.head is None else self.head(x)
