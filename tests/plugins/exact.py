"""What the kernels have to compute, in float64, and how near they have to come."""

from __future__ import annotations

from typing import Any

import numpy as np

from ernie_export.quantize.formats import unpack

Array = np.ndarray[Any, Any]


def weights(
    random: np.random.Generator, shape: tuple[int, ...], bits: int, block_size: int
) -> tuple[Array, Array]:
    """Random codes u8 [..., N, K·bits/8] and scales fp16 [..., N, K/block] of an [..., N, K] matrix."""
    *rows, k = shape
    data = random.integers(0, 256, (*rows, k * bits // 8), dtype=np.uint8)
    scales = random.uniform(0.5, 1.5, (*rows, k // block_size)) * random.choice(
        [-1, 1], (*rows, k // block_size)
    )
    return data, (scales / (2 ** (bits - 1) * np.sqrt(k))).astype(np.float16)


def dequantized(data: Array, scales: Array, bits: int) -> Array:
    """[…, N, K] float64."""
    levels = unpack(data, bits).astype(np.float64) - 2 ** (bits - 1)
    blocks = levels.reshape(*scales.shape, -1)
    return (blocks * scales.astype(np.float64)[..., None]).reshape(levels.shape)


def activations(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    return random.standard_normal(shape).astype(dtype)


def experts(x: Array, indices: Array, scores: Array, gate_up: Array, down: Array) -> Array:
    """gate_up [E,2I,H] interleaved and down [E,H,I], dequantized."""
    x, y = x.astype(np.float64), np.zeros(x.shape)
    for expert in np.unique(indices):
        for token, place in zip(*np.where(indices == expert), strict=True):
            both = gate_up[expert] @ x[token]
            gate, up = both[0::2], both[1::2]
            y[token] += float(scores[token, place]) * (down[expert] @ (gate / (1 + np.exp(-gate)) * up))
    return y


def turned(x: Array, cos: Array, sin: Array) -> Array:
    """RoPE on interleaved pairs: x [..., D], cos and sin [..., D/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


def attention(queries: Array, keys: Array, values: Array, scale: float) -> Array:
    """queries [heads, D] on keys and values [kv, seen, D] → [heads, D]."""
    group = len(queries) // len(keys)
    output = np.empty(queries.shape)
    for head, query in enumerate(queries):
        scores = keys[head // group] @ query * scale
        p = np.exp(scores - scores.max())
        output[head] = p / p.sum() @ values[head // group]
    return output


def error(actual: Array, expected: Array, usual: float = 0) -> float:
    """‖actual − expected‖ / ‖expected‖; NaN where a number is missing, so that `<` fails.

    usual: the size of an element below which it is due to cancellation, not to the scale of things; it
    keeps a few elements that are next to nothing from being held to nothing.
    """
    difference = np.linalg.norm(actual.astype(np.float64) - expected)
    return float(difference / max(np.linalg.norm(expected), usual * np.sqrt(expected.size), 1e-30))
