"""The operators of an ERNIE-4.5 graph, as PyTorch operators.

Each is one node in the exported graph (domain `ernie`) and a model-local function there; here it
has a shape rule, for tracing, and a plain PyTorch implementation, for running the model itself.
Letters in shapes: B batch, S new tokens, H hidden, E experts, k experts a token, I expert width,
N output rows, K input columns, P rows of the past cache, L rows of the present one, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DOMAIN = "ernie"
Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def unpack(
    data: Tensor, scales: Tensor, bits: int, block_size: int, matrix_scales: Tensor | None = None
) -> Tensor:
    """[…, K·bits/8] u8 and [..., K/block] → [..., K] float32: low bits first, offset binary.

    fp8: data E4M3 [..., K], scales [..., 1]. nvfp4: matrix_scales [..., 1, 1], those of the matrices.
    """
    if data.dtype == torch.float8_e4m3fn:
        return data.float() * scales
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    codes = ((data.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)
    if matrix_scales is None:
        values, factors = codes.float() - 2 ** (bits - 1), scales.float()
    else:
        from ernie_export.quantize import nvfp4

        values = torch.from_numpy(nvfp4.NUMBERS).to(data.device)[codes.long()]
        factors = scales.float() * matrix_scales
    return (values.unflatten(-1, (-1, block_size)) * factors.unsqueeze(-1)).flatten(-2)


@torch.library.custom_op(f"{DOMAIN}::moe_routing", mutates_args=())
def moe_routing(hidden: Tensor, weight: Tensor, bias: Tensor, k: int, norm_min: float) -> Pair:
    """hidden [B,S,H], weight [E,H] fp32, bias [E] fp32 → indices [B,S,k] int64, scores [B,S,k].

    Chosen by probability + bias, weighted by the probabilities alone, divided by
    max(their sum, norm_min); all in fp32, as ERNIE's own router does it.
    """
    probability = F.softmax(F.linear(hidden.float(), weight), dim=-1)
    indices = torch.topk(probability + bias, k, dim=-1).indices
    chosen = probability.gather(-1, indices)
    scores = chosen / chosen.sum(-1, keepdim=True).clamp(min=norm_min)
    return indices, scores.to(hidden.dtype)


@moe_routing.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor, k: int, norm_min: float) -> Pair:
    shape = (*hidden.shape[:-1], k)
    return hidden.new_empty(shape, dtype=torch.int64), hidden.new_empty(shape)


@torch.library.custom_op(f"{DOMAIN}::moe_experts", mutates_args=())
def moe_experts(
    hidden: Tensor,
    indices: Tensor,
    scores: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    bits: int,
    block_size: int,
    gate_up_matrix_scales: Tensor | None = None,
    down_matrix_scales: Tensor | None = None,
) -> Tensor:
    """hidden [B,S,H], indices and scores [B,S,k], gate_up [E,2I,·] (rows gate₀ up₀ gate₁ up₁ …),
    down [E,H,·] → Σ score · down(silu(gate x) · up x), [B,S,H]."""
    x = hidden.flatten(0, 1)
    chosen, weights = indices.flatten(0, 1), scores.flatten(0, 1)
    result = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        token, slot = torch.where(chosen == expert)
        w1, w2 = (
            unpack(data[expert], scales[expert], bits, block_size, None if own is None else own[expert]).to(
                x.dtype
            )
            for data, scales, own in (
                (gate_up, gate_up_scales, gate_up_matrix_scales),
                (down, down_scales, down_matrix_scales),
            )
        )
        gate, up = F.linear(x[token], w1).unflatten(-1, (-1, 2)).unbind(-1)
        result.index_add_(0, token, F.linear(F.silu(gate) * up, w2) * weights[token, slot, None])
    return result.view_as(hidden)


@moe_experts.register_fake
def _(
    hidden: Tensor,
    indices: Tensor,
    scores: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    bits: int,
    block_size: int,
    gate_up_matrix_scales: Tensor | None = None,
    down_matrix_scales: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(hidden)


@torch.library.custom_op(f"{DOMAIN}::moe_experts_float", mutates_args=())
def moe_experts_float(
    hidden: Tensor, indices: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """`moe_experts` with gate_up [E,2I,H] and down [E,H,I] in fp16, bf16 or fp32."""
    x = hidden.flatten(0, 1)
    chosen, weights = indices.flatten(0, 1), scores.flatten(0, 1)
    result = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        token, slot = torch.where(chosen == expert)
        gate, up = F.linear(x[token], gate_up[expert].to(x.dtype)).unflatten(-1, (-1, 2)).unbind(-1)
        y = F.linear(F.silu(gate) * up, down[expert].to(x.dtype))
        result.index_add_(0, token, y * weights[token, slot, None])
    return result.view_as(hidden)


@moe_experts_float.register_fake
def _(hidden: Tensor, indices: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return torch.empty_like(hidden)


@torch.library.custom_op(f"{DOMAIN}::quantized_linear", mutates_args=())
def quantized_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bits: int,
    block_size: int,
    matrix_scales: Tensor | None = None,
) -> Tensor:
    """x [B,S,K], weight [N, K·bits/8] u8, scales [N, K/block] → [B,S,N]."""
    return F.linear(x, unpack(weight, scales, bits, block_size, matrix_scales).to(x.dtype))


@quantized_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bits: int,
    block_size: int,
    matrix_scales: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op(f"{DOMAIN}::quantized_embedding", mutates_args=())
def quantized_embedding(
    ids: Tensor,
    weight: Tensor,
    scales: Tensor,
    bits: int,
    block_size: int,
    matrix_scales: Tensor | None = None,
) -> Tensor:
    """ids [B,S] int64, weight [V, H·bits/8] u8, scales [V, H/block] → the rows of the ids, [B,S,H] fp32."""
    return unpack(weight[ids], scales[ids], bits, block_size, matrix_scales)


@quantized_embedding.register_fake
def _(
    ids: Tensor,
    weight: Tensor,
    scales: Tensor,
    bits: int,
    block_size: int,
    matrix_scales: Tensor | None = None,
) -> Tensor:
    return ids.new_empty((*ids.shape, weight.shape[-1] * 8 // bits), dtype=torch.float32)


@torch.library.custom_op(f"{DOMAIN}::cached_attention", mutates_args=())
def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
) -> Triple:
    """query [B,S,heads·D], key and value [B,S,kv·D], past [B,kv,P,D], cos and sin [positions, D/2],
    position_ids [B,S], seqlens_k [B] int32 (valid rows of the present cache − 1), total int32 scalar
    → output [B,S,heads·D], present key and value [B,kv,L,D] with L = max(P, total).

    New rows go in at max(seqlens_k + 1 − S, 0); RoPE turns interleaved pairs (0,1), (2,3), …
    """
    batch, new = query.shape[:2]
    length = max(past_key.shape[2], int(total_sequence_length))
    q = rotate(query.unflatten(-1, (num_heads, -1)), cos[position_ids], sin[position_ids])
    k = rotate(key.unflatten(-1, (kv_num_heads, -1)), cos[position_ids], sin[position_ids])
    v = value.unflatten(-1, (kv_num_heads, -1))
    start = (seqlens_k.long() + 1 - new).clamp(min=0)
    rows = start[:, None] + torch.arange(new, device=query.device)
    pad = (0, 0, 0, length - past_key.shape[2])
    present_key, present_value = F.pad(past_key, pad), F.pad(past_value, pad)
    for b in range(batch):
        present_key[b, :, rows[b]] = k[b].transpose(0, 1)
        present_value[b, :, rows[b]] = v[b].transpose(0, 1)
    mask = torch.arange(length, device=query.device) <= rows[..., None]
    output = F.scaled_dot_product_attention(
        q.transpose(1, 2), present_key, present_value, mask[:, None], scale=scale, enable_gqa=True
    )
    return output.transpose(1, 2).flatten(2), present_key, present_value


@cached_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
) -> Triple:
    # The cache may grow; in a trace its length is a name, which graph/trace.py sets.
    return torch.empty_like(query), torch.empty_like(past_key), torch.empty_like(past_value)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B,S,heads,D], cos and sin [B,S,D/2]: RoPE on interleaved pairs, in fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos.float()[:, :, None], sin.float()[:, :, None]
    return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2).to(x.dtype)
