"""One node of CachedAttention in ONNX Runtime, and what it must give, in float64.

`python -m tests.engine.attention LIBRARY` runs the native operator on shapes of every kind, for a sanitizer to watch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    width: int
    new: int
    """Tokens of each row, S."""
    past: int
    """Rows of the cache, P."""
    lengths: tuple[int, ...]
    """Rows in use afterwards, by row of the batch; fewer than S where a row is padded on the right."""


EXAMPLES = [
    Shape(4, 2, 32, 1, 0, (1,)),  # an empty cache that grows
    Shape(20, 4, 128, 1, 64, (10,)),
    Shape(5, 1, 64, 1, 700, (600, 4)),  # rows of several lengths, over several spans
    Shape(6, 2, 48, 40, 64, (50,)),  # tiles of tokens, a group that fills no register block
    Shape(4, 4, 16, 7, 0, (7, 3, 1)),  # no groups, padded
    Shape(20, 4, 128, 33, 1100, (1090,)),
    Shape(8, 1, 128, 3, 2000, (1701,)),  # several tokens over several spans
]


def session(shape: Shape, library: Path) -> Any:
    import onnxruntime

    floats, halves, integers = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32
    query, key = shape.heads * shape.width, shape.kv_heads * shape.width
    cache = ["B", shape.kv_heads, "P", shape.width]
    inputs = {
        "query": (floats, ["B", "S", query]), "key": (floats, ["B", "S", key]), "value": (floats, ["B", "S", key]),
        "past_key": (halves, cache), "past_value": (halves, cache),
        "cos": (floats, ["N", shape.width // 2]), "sin": (floats, ["N", shape.width // 2]),
        "position_ids": (TensorProto.INT64, ["B", "S"]), "seqlens_k": (integers, ["B"]), "total": (integers, []),
    }  # fmt: skip
    outputs = {"output": floats, "present_key": halves, "present_value": halves}
    node = helper.make_node(
        "CachedAttention", list(inputs), list(outputs), domain="ernie",
        num_heads=shape.heads, kv_num_heads=shape.kv_heads, scale=shape.width**-0.5,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "attention",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ernie", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def feeds(shape: Shape, seed: int) -> dict[str, Array]:
    """Random, but for positions and angles; rows of the cache that are not in use hold what must not be read."""
    random = np.random.default_rng(seed)
    batch, total = len(shape.lengths), max(shape.lengths)
    starts = np.maximum(np.array(shape.lengths) - shape.new, 0)

    def normal(*dims: int) -> Array:
        return random.standard_normal(dims).astype(np.float32)

    cache = (batch, shape.kv_heads, shape.past, shape.width)
    past = [normal(*cache).astype(np.float16) for _ in range(2)]
    for row, start in enumerate(starts):
        for values in past:
            values[row, :, start + shape.new :] = np.nan
    angles = np.arange(max(total, shape.new))[:, None] * 500000.0 ** (
        -2 * np.arange(shape.width // 2) / shape.width
    )
    return {
        "query": 3 * normal(batch, shape.new, shape.heads * shape.width),
        "key": normal(batch, shape.new, shape.kv_heads * shape.width),
        "value": normal(batch, shape.new, shape.kv_heads * shape.width),
        "past_key": past[0], "past_value": past[1],
        "cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32),
        "position_ids": starts[:, None] + np.arange(shape.new),
        "seqlens_k": np.array(shape.lengths, np.int32) - 1, "total": np.array(total, np.int32),
    }  # fmt: skip


def rotated(x: Array, fed: dict[str, Array]) -> Array:
    """x [B,S,heads,D]: pairs (0, 1), (2, 3), … turned, float64."""
    cos, sin = (fed[name][fed["position_ids"]][:, :, None].astype(np.float64) for name in ("cos", "sin"))
    even, odd = x[..., 0::2].astype(np.float64), x[..., 1::2].astype(np.float64)
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), -1).reshape(x.shape)


def present(shape: Shape, fed: dict[str, Array]) -> list[Array]:
    """Keys and values [B,kv,L,D] as the cache holds them afterwards."""
    new = (len(shape.lengths), shape.new, shape.kv_heads, shape.width)
    added = rotated(fed["key"].reshape(new), fed), fed["value"].reshape(new)
    length = max(shape.past, int(fed["total"]))
    made = []
    for past, rows in zip((fed["past_key"], fed["past_value"]), added, strict=True):
        cache = np.zeros((len(shape.lengths), shape.kv_heads, length, shape.width), np.float16)
        cache[:, :, : shape.past] = past
        for row, used in enumerate(shape.lengths):
            start = max(used - shape.new, 0)
            cache[row, :, start : start + shape.new] = rows[row].swapaxes(0, 1)
        made.append(cache)
    return made


def attended(shape: Shape, fed: dict[str, Array], keys: Array, values: Array) -> Array:
    """Output [B,S,heads·D] over that cache, float64."""
    batch, new = len(shape.lengths), shape.new
    query = rotated(fed["query"].reshape(batch, new, shape.heads, shape.width), fed)
    output = np.zeros(query.shape)
    for row, used in enumerate(shape.lengths):
        for token in range(new):
            seen = max(used - new, 0) + token + 1
            for head in range(shape.heads):
                group = head // (shape.heads // shape.kv_heads)
                read, added = (cache[row, group, :seen].astype(np.float64) for cache in (keys, values))
                scores = read @ query[row, token, head] * shape.width**-0.5
                weights = np.exp(scores - scores.max())
                output[row, token, head] = weights @ added / weights.sum()
    return output.reshape(batch, new, -1)


def check(shape: Shape, library: Path, seed: int = 0) -> None:
    fed = feeds(shape, seed)
    output, keys, values = session(shape, library).run(None, fed)
    want_keys, want_values = present(shape, fed)
    np.testing.assert_array_equal(values, want_values)
    # Keys were turned in fp32 and in float64, so that some few are rounded to the other neighbour.
    assert np.allclose(keys, want_keys, rtol=2**-10, atol=2**-20, equal_nan=True)
    want = attended(shape, fed, keys, values)
    assert np.abs(output - want).max() < 1e-5 * np.abs(want).max()


if __name__ == "__main__":
    for number, example in enumerate(EXAMPLES):
        check(example, Path(sys.argv[1]), number)
