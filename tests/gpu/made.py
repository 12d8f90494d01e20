"""Random weights, activations and choices, made on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """[…, N, K] in `bits`: codes u8 [..., N, K·bits/8], scales fp16 [..., N, K/block]."""

    data: Tensor
    scales: Tensor
    bits: int
    block_size: int

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes


def packed(random: torch.Generator, shape: tuple[int, ...], bits: int, block_size: int) -> Packed:
    """Weights of about 1/√K, so that a product is about as large as what went in."""
    *rows, k = shape
    data = torch.randint(
        0, 256, (*rows, k * bits // 8), dtype=torch.uint8, generator=random, device=random.device
    )
    scales = 0.5 + torch.rand(*rows, k // block_size, generator=random, device=random.device)
    return Packed(data, (scales * 1.7 / (2 ** (bits - 1) * k**0.5)).half(), bits, block_size)


def activations(random: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=random, device=random.device).to(dtype)


@dataclass(frozen=True)
class Experts:
    gate_up: Packed
    down: Packed

    def run(self, x: Tensor, indices: Tensor, scores: Tensor) -> Tensor:
        up, down = self.gate_up, self.down
        weights = (up.data, up.scales, down.data, down.scales)
        return torch.ops.ernie.moe_experts(x, indices, scores, *weights, up.bits, up.block_size)

    def bytes_of(self, indices: Tensor) -> int:
        """Of the experts chosen, once."""
        each = (self.gate_up.nbytes + self.down.nbytes) // len(self.gate_up.data)
        return each * len(indices.unique())


def experts(
    random: torch.Generator, number: int, hidden: int, width: int, bits: int = 4, block_size: int = 128
) -> Experts:
    return Experts(
        packed(random, (number, 2 * width, hidden), bits, block_size),
        packed(random, (number, hidden, width), bits, block_size),
    )


def choices(
    random: torch.Generator, tokens: int, number: int, k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """indices [1,T,k], k different ones a token, and scores that sum to 1."""
    chance = torch.rand(1, tokens, number, generator=random, device=random.device)
    scores = 0.1 + torch.rand(1, tokens, k, generator=random, device=random.device)
    return chance.topk(k).indices, (scores / scores.sum(-1, keepdim=True)).to(dtype)


@dataclass(frozen=True)
class Cached:
    """A cache [B,kv,L,D], full of random rows, and the queries of `tokens` new ones behind `before`."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    cos: Tensor
    sin: Tensor
    position_ids: Tensor
    seqlens_k: Tensor
    heads: int
    scale: float

    def run(self) -> Tensor:
        return torch.ops.ernie.cached_attention_in_place(
            self.query, self.key, self.value, self.keys, self.values, self.key_scales, self.value_scales,
            self.cos, self.sin, self.position_ids, self.seqlens_k, self.heads, self.scale,
        )  # fmt: skip

    @property
    def cache_bytes(self) -> int:
        tensors = (self.keys, self.values, self.key_scales, self.value_scales)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def cached(
    random: torch.Generator,
    before: list[int],
    tokens: int,
    rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    bits: int = 16,
) -> Cached:
    batch, device = len(before), random.device
    shape = (batch, kv_heads, rows, head_dim)

    def cache() -> tuple[Tensor, Tensor | None]:
        if bits == 16:
            return activations(random, *shape, dtype=dtype), None
        codes = torch.randint(1, 256, shape, dtype=torch.uint8, generator=random, device=device)
        return codes, (0.5 + torch.rand(shape[:3], generator=random, device=device)) * 1.7 / 128

    (keys, key_scales), (values, value_scales) = cache(), cache()
    lengths = torch.tensor(before, device=device)
    frequencies = 500000.0 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    angles = torch.arange(rows, device=device)[:, None] * frequencies
    return Cached(
        query=activations(random, batch, tokens, heads * head_dim, dtype=dtype),
        key=activations(random, batch, tokens, kv_heads * head_dim, dtype=dtype),
        value=activations(random, batch, tokens, kv_heads * head_dim, dtype=dtype),
        keys=keys,
        values=values,
        key_scales=key_scales,
        value_scales=value_scales,
        cos=angles.cos(),
        sin=angles.sin(),
        position_ids=lengths[:, None] + torch.arange(tokens, device=device),
        seqlens_k=(lengths + tokens - 1).to(torch.int32),
        heads=heads,
        scale=head_dim**-0.5,
    )
