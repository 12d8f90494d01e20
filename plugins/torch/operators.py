"""The launch functions as implementations of our PyTorch operators (ernie_export/model/operators.py).

`register` gives them to a device's type.  They take activations of 16 bits; of other dtypes, and once
removed again, the plain implementations run, as on any other device.
"""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor

from ernie_export.model import operators
from ernie_export.model.operators import DOMAIN, Pair, Triple
from plugins.torch.library import Attention, Experts, Library, Linear, Routing

TYPES = {torch.float16: 0, torch.bfloat16: 1}
LIBRARIES: dict[str, Library] = {}


def register(library: Library) -> None:
    """From now on our operators run on this library wherever their tensors lie on its type of device."""
    LIBRARIES[library.device.type] = library
    for operator, implementation in IMPLEMENTATIONS.items():
        operator.register_kernel(library.device.type)(implementation)


def remove(device_type: str) -> None:
    """The plain implementations again."""
    LIBRARIES.pop(device_type, None)


def library_for(x: Tensor) -> Library | None:
    return LIBRARIES.get(x.device.type) if x.dtype in TYPES else None


def plain(operator: Any, *arguments: Any) -> Any:
    with operator.set_kernel_enabled(arguments[0].device.type, enabled=False):
        return operator(*arguments)


def address(name: str, tensor: Tensor, like: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """Where a tensor lies, which must be as the kernel will read it; ValueError where it is not."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device != like.device:
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; "
            f"it must be {dtype} {list(shape)} on {like.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous")
    return tensor.data_ptr()


def columns(name: str, packed: Tensor, bits: int) -> int:
    """K of a packed matrix [..., N, K·bits/8]."""
    if packed.dim() < 2 or bits not in (4, 8):
        raise ValueError(
            f"{name} is {list(packed.shape)} of {bits} bits; it must be [..., N, K·bits/8] of 4 or 8"
        )
    return packed.shape[-1] * 8 // bits


def moe_routing(hidden: Tensor, weight: Tensor, bias: Tensor, k: int, norm_min: float) -> Pair:
    library = library_for(hidden)
    if library is None:
        return plain(operators.moe_routing, hidden, weight, bias, k, norm_min)
    hidden, (*outer, size), experts = hidden.contiguous(), hidden.shape, len(bias)
    indices = hidden.new_empty((*outer, k), dtype=torch.int64)
    scores = hidden.new_empty((*outer, k))
    library.launch(
        Routing(
            type=TYPES[hidden.dtype],
            tokens=math.prod(outer),
            hidden=size,
            experts=experts,
            k=k,
            norm_min=norm_min,
            x=hidden.data_ptr(),
            weight=address("weight", weight, hidden, torch.float32, experts, size),
            bias=address("bias", bias, hidden, torch.float32, experts),
            indices=indices.data_ptr(),
            scores=scores.data_ptr(),
        )
    )
    return indices, scores


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
    library = library_for(hidden)
    weights = (gate_up, gate_up_scales, down, down_scales)
    if library is None:
        own = gate_up_matrix_scales, down_matrix_scales
        return plain(operators.moe_experts, hidden, indices, scores, *weights, bits, block_size, *own)
    hidden, indices, scores = hidden.contiguous(), indices.contiguous(), scores.contiguous()
    (*outer, size), k = hidden.shape, indices.shape[-1]
    experts, width = len(gate_up), columns("down", down, bits)
    y = torch.empty_like(hidden)

    def packed(name: str, matrix: Tensor, n: int, columns: int) -> int:
        return address(name, matrix, hidden, torch.uint8, experts, n, columns * bits // 8)

    def scaled(name: str, matrix: Tensor, n: int, columns: int) -> int:
        return address(name, matrix, hidden, torch.float16, experts, n, columns // block_size)

    library.launch(
        Experts(
            type=TYPES[hidden.dtype],
            bits=bits,
            block_size=block_size,
            tokens=math.prod(outer),
            hidden=size,
            width=width,
            experts=experts,
            k=k,
            x=hidden.data_ptr(),
            indices=address("indices", indices, hidden, torch.int64, *outer, k),
            scores=address("scores", scores, hidden, hidden.dtype, *outer, k),
            gate_up=packed("gate_up", gate_up, 2 * width, size),
            gate_up_scales=scaled("gate_up_scales", gate_up_scales, 2 * width, size),
            down=packed("down", down, size, width),
            down_scales=scaled("down_scales", down_scales, size, width),
            y=y.data_ptr(),
            faults=library.faults.data_ptr(),
        )
    )
    return y


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bits: int,
    block_size: int,
    matrix_scales: Tensor | None = None,
) -> Tensor:
    library = library_for(x)
    if library is None:
        return plain(operators.quantized_linear, x, weight, scales, bits, block_size, matrix_scales)
    x, (*outer, k), n = x.contiguous(), x.shape, len(weight)
    y = x.new_empty((*outer, n))
    library.launch(
        Linear(
            type=TYPES[x.dtype],
            bits=bits,
            block_size=block_size,
            tokens=math.prod(outer),
            n=n,
            k=k,
            x=x.data_ptr(),
            weight=address("weight", weight, x, torch.uint8, n, k * bits // 8),
            scales=address("scales", scales, x, torch.float16, n, k // block_size),
            y=y.data_ptr(),
        )
    )
    return y


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
    """The past is copied: a model that runs has its cache in place (below)."""
    where = (cos, sin, position_ids, seqlens_k)
    if library_for(query) is None:
        arguments = (query, key, value, past_key, past_value, *where, total_sequence_length)
        return plain(operators.cached_attention, *arguments, num_heads, kv_num_heads, scale)
    batch, heads, past, width = past_key.shape
    shape = (batch, heads, max(past, int(total_sequence_length)), width)
    present_key, present_value = past_key.new_zeros(shape), past_value.new_zeros(shape)
    present_key[:, :, :past], present_value[:, :, :past] = past_key, past_value
    output = torch.ops.ernie.cached_attention_in_place(
        query, key, value, present_key, present_value, None, None, *where, num_heads, scale
    )
    return output, present_key, present_value


@torch.library.custom_op(
    f"{DOMAIN}::cached_attention_in_place", mutates_args=("keys", "values", "key_scales", "value_scales")
)
def cached_attention_in_place(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Optional[Tensor],  # noqa: UP045 - PyTorch reads the annotation, and older ones know no other
    value_scales: Optional[Tensor],  # noqa: UP045
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor,
    seqlens_k: Tensor,
    num_heads: int,
    scale: float,
) -> Tensor:
    """`cached_attention` over a cache [B,kv,L,D] that is written in place, → output [B,S,heads·D].

    The cache is of the activations' dtype; with scales [B,kv,L] fp32 it has 8 bits (layout in attention.h).
    """
    library = library_for(query)
    if library is None:
        raise ValueError(f"no kernels are registered for {query.dtype} on {query.device}")
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    batch, tokens, _ = query.shape
    kv_heads, rows, width = keys.shape[1:]
    output = torch.empty_like(query)

    def new(name: str, tensor: Tensor, heads: int) -> int:
        return address(name, tensor, query, query.dtype, batch, tokens, heads * width)

    def cache(name: str, tensor: Tensor) -> int:
        dtype = query.dtype if key_scales is None else torch.uint8
        return address(name, tensor, query, dtype, batch, kv_heads, rows, width)

    def scales(name: str, tensor: Tensor | None) -> int | None:
        return None if tensor is None else address(name, tensor, query, torch.float32, batch, kv_heads, rows)

    places = {
        f"{time}_{name}": place
        for name, place in (
            ("key", cache("keys", keys)),
            ("value", cache("values", values)),
            ("key_scales", scales("key_scales", key_scales)),
            ("value_scales", scales("value_scales", value_scales)),
        )
        for time in ("past", "present")
    }
    library.launch(
        Attention(
            type=TYPES[query.dtype],
            batch=batch,
            tokens=tokens,
            heads=num_heads,
            kv_heads=kv_heads,
            head_dim=width,
            past_rows=rows,
            rows=rows,
            positions=len(cos),
            scale=scale,
            query=new("query", query, num_heads),
            key=new("key", key, kv_heads),
            value=new("value", value, kv_heads),
            cos=address("cos", cos, query, torch.float32, len(cos), width // 2),
            sin=address("sin", sin, query, torch.float32, len(cos), width // 2),
            position_ids=address("position_ids", position_ids, query, torch.int64, batch, tokens),
            seqlens_k=address("seqlens_k", seqlens_k, query, torch.int32, batch),
            output=output.data_ptr(),
            faults=library.faults.data_ptr(),
            cache_bits=16 if key_scales is None else 8,
            **places,
        )
    )
    return output


IMPLEMENTATIONS = {
    operators.moe_routing: moe_routing,
    operators.moe_experts: moe_experts,
    operators.quantized_linear: quantized_linear,
    operators.cached_attention: cached_attention,
}
