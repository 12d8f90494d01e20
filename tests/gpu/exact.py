"""What the kernels have to compute, in float64, on the device; tests/plugins/exact.py says the same with numpy."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.gpu.made import Cached, Experts, Packed


def dequantized(data: Tensor, scales: Tensor, bits: int) -> Tensor:
    """[N, K·bits/8] u8 and [N, K/block] → [N, K] float64: low bits first, offset binary."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    codes = ((data[:, :, None] >> shifts) & (2**bits - 1)).flatten(1).double() - 2 ** (bits - 1)
    return (codes.unflatten(1, (scales.shape[1], -1)) * scales.double()[:, :, None]).flatten(1)


def linear(x: Tensor, weight: Packed) -> Tensor:
    return x.double() @ dequantized(weight.data, weight.scales, weight.bits).T


def experts(x: Tensor, indices: Tensor, scores: Tensor, layer: Experts) -> Tensor:
    """x [1,T,H], indices and scores [1,T,k]; one expert's weights in memory at a time."""
    given, y = x[0].double(), torch.zeros_like(x[0], dtype=torch.float64)
    for expert in indices.unique().tolist():
        token, place = torch.where(indices[0] == expert)
        first, second = (
            dequantized(matrix.data[expert], matrix.scales[expert], matrix.bits)
            for matrix in (layer.gate_up, layer.down)
        )
        both = given[token] @ first.T
        inner = torch.nn.functional.silu(both[:, 0::2]) * both[:, 1::2]
        y.index_add_(0, token, scores[0, token, place].double()[:, None] * (inner @ second.T))
    return y[None]


def probabilities(x: Tensor, weight: Tensor) -> Tensor:
    return torch.softmax(x.double() @ weight.double().T, dim=-1)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on interleaved pairs: x [S,heads,D], cos and sin [S,D/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    c, s = cos.double()[:, None], sin.double()[:, None]
    return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2)


def stored(codes: Tensor, scales: Tensor | None) -> Tensor:
    return codes.double() if scales is None else (codes.double() - 128) * scales.double()[..., None]


def new_rows(step: Cached, row: int) -> tuple[Tensor, Tensor]:
    """Keys and values [S,kv,D] that the cache has to hold of the new tokens of a row of the batch."""
    kv_heads, at = step.keys.shape[1], step.position_ids[row]
    key, value = (part[row].double().unflatten(-1, (kv_heads, -1)) for part in (step.key, step.value))
    return turned(key, step.cos[at], step.sin[at]), value


def attention(step: Cached, row: int) -> Tensor:
    """Output [S, heads·D] of a row of the batch, over the cache as it is now."""
    at, kv_heads = step.position_ids[row], step.keys.shape[1]
    query = turned(step.query[row].double().unflatten(-1, (step.heads, -1)), step.cos[at], step.sin[at])
    valid = int(step.seqlens_k[row]) + 1
    scales = [None if s is None else s[row, :, :valid] for s in (step.key_scales, step.value_scales)]
    keys, values = (
        stored(step.keys[row, :, :valid], scales[0]),
        stored(step.values[row, :, :valid], scales[1]),
    )
    grouped = query.unflatten(1, (kv_heads, -1))  # [S,kv,group,D]
    scores = torch.einsum("skgd,knd->skgn", grouped, keys) * step.scale
    seen = torch.arange(valid, device=at.device) <= at[:, None]
    p = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("skgn,knd->skgd", p, values).flatten(1)


def error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; NaN where a number is missing."""
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30))
