"""Each launch function as a function on numpy arrays; the fields are those of its struct, in order."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tests.plugins.emulated import AS_THEY_COME, Answer, Field, Schedule, call

Array = np.ndarray[Any, Any]
TYPES: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def type_of(x: Array) -> int:
    return 0 if x.dtype == np.float16 else 1


def nans(shape: tuple[int, ...], dtype: Any) -> Array:
    """What an output holds before the call: an element that is not written shows."""
    if np.issubdtype(dtype, np.integer):
        return np.full(shape, 0 if dtype == np.uint8 else -77, dtype)
    return np.full(shape, np.nan, dtype)


def routing(
    x: Array,
    weight: Array,
    bias: Array,
    k: int,
    norm_min: float = 1e-12,
    *,
    schedule: Schedule = AS_THEY_COME,
    flavour: str = "address",
    instead: Field | None = None,
    spare: int = 0,
) -> Answer:
    """x [T,H], weight [E,H], bias [E] → indices, scores [T,k]; `spare` bytes more of workspace than needed."""
    shape = (len(x), k)
    fields = [
        ("type", "i32", type_of(x)),
        ("tokens", "i32", len(x)),
        ("hidden", "i32", x.shape[1]),
        ("experts", "i32", len(weight)),
        ("k", "i32", k),
        ("norm_min", "f32", norm_min),
        ("x", "in", x),
        ("weight", "in", weight),
        ("bias", "in", bias),
        ("indices", "out", nans(shape, np.int64)),
        ("scores", "out", nans(shape, x.dtype)),
        ("workspace", "workspace", spare),
    ]
    return call("ernie_moe_routing", fields, schedule, flavour, instead=instead)


def linear(
    x: Array,
    weight: Array,
    scales: Array,
    bits: int,
    block_size: int,
    *,
    schedule: Schedule = AS_THEY_COME,
    flavour: str = "address",
    instead: Field | None = None,
) -> Answer:
    """x [T,K], weight u8 [N, K·bits/8], scales [N, K/block] → y [T,N]."""
    fields = [
        ("type", "i32", type_of(x)),
        ("bits", "i32", bits),
        ("block_size", "i32", block_size),
        ("tokens", "i32", len(x)),
        ("n", "i32", len(weight)),
        ("k", "i32", x.shape[1]),
        ("x", "in", x),
        ("weight", "in", weight),
        ("scales", "in", scales),
        ("y", "out", nans((len(x), len(weight)), x.dtype)),
    ]
    return call("ernie_quantized_linear", fields, schedule, flavour, instead=instead)


def experts(
    x: Array,
    indices: Array,
    scores: Array,
    weights: tuple[Array, Array, Array, Array],
    bits: int,
    block_size: int,
    *,
    schedule: Schedule = AS_THEY_COME,
    flavour: str = "address",
    instead: Field | None = None,
    spare: int = 0,
) -> Answer:
    """x [T,H], indices and scores [T,k], (gate_up, its scales, down, its scales) → y [T,H], faults [1]."""
    gate_up, gate_up_scales, down, down_scales = weights
    fields = [
        ("type", "i32", type_of(x)),
        ("bits", "i32", bits),
        ("block_size", "i32", block_size),
        ("tokens", "i32", len(x)),
        ("hidden", "i32", x.shape[1]),
        ("width", "i32", gate_up.shape[1] // 2),
        ("experts", "i32", len(gate_up)),
        ("k", "i32", indices.shape[1]),
        ("x", "in", x),
        ("indices", "in", indices),
        ("scores", "in", scores),
        ("gate_up", "in", gate_up),
        ("gate_up_scales", "in", gate_up_scales),
        ("down", "in", down),
        ("down_scales", "in", down_scales),
        ("y", "out", nans(x.shape, x.dtype)),
        ("faults", "out", np.zeros(1, np.uint32)),
        ("workspace", "workspace", spare),
    ]
    return call("ernie_moe_experts", fields, schedule, flavour, instead=instead)


def attention(
    query: Array,
    key: Array,
    value: Array,
    past: tuple[Array, Array],
    cos: Array,
    sin: Array,
    position_ids: Array,
    seqlens_k: Array,
    heads: int,
    rows: int,
    scale: float,
    past_scales: tuple[Array, Array] | None = None,
    *,
    schedule: Schedule = AS_THEY_COME,
    flavour: str = "address",
    instead: Field | None = None,
    spare: int = 0,
) -> Answer:
    """query [B, S, heads·D], key and value [B, S, kv·D], past [B, kv, P, D] → output, present_key and
    present_value [B, kv, rows, D], faults; with past_scales [B, kv, P] the cache has 8 bits, and there are
    present_key_scales and present_value_scales.  Where `rows` is P, the cache is written in place."""
    batch, tokens, _ = query.shape
    kv_heads, past_rows, head_dim = past[0].shape[1:]

    def cache(name: str, given: Array) -> list[Field]:
        if past_rows == rows:
            return [(f"past_{name}", "same", f"present_{name}"), (f"present_{name}", "out", given)]
        present = nans((batch, kv_heads, rows, *given.shape[3:]), given.dtype)
        return [(f"past_{name}", "in", given), (f"present_{name}", "out", present)]

    (past_key, present_key), (past_value, present_value) = cache("key", past[0]), cache("value", past[1])
    if past_scales is None:
        names = ("past_key", "past_value", "present_key", "present_value")
        scales: list[Field] = [(f"{name}_scales", "null", None) for name in names]
    else:
        of_keys, of_values = cache("key_scales", past_scales[0]), cache("value_scales", past_scales[1])
        scales = [part for pair in zip(of_keys, of_values, strict=True) for part in pair]
    fields = [
        ("type", "i32", type_of(query)),
        ("batch", "i32", batch),
        ("tokens", "i32", tokens),
        ("heads", "i32", heads),
        ("kv_heads", "i32", kv_heads),
        ("head_dim", "i32", head_dim),
        ("past_rows", "i32", past_rows),
        ("rows", "i32", rows),
        ("positions", "i32", len(cos)),
        ("scale", "f32", scale),
        ("query", "in", query),
        ("key", "in", key),
        ("value", "in", value),
        past_key,
        past_value,
        ("cos", "in", cos),
        ("sin", "in", sin),
        ("position_ids", "in", position_ids),
        ("seqlens_k", "in", seqlens_k),
        ("output", "out", nans(query.shape, query.dtype)),
        present_key,
        present_value,
        ("faults", "out", np.zeros(1, np.uint32)),
        ("workspace", "workspace", spare),
        ("cache_bits", "i32", 16 if past_scales is None else 8),
        *scales,
    ]
    return call("ernie_cached_attention", fields, schedule, flavour, instead=instead)
