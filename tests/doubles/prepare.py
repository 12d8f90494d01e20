"""What the double of TensorRT runs: graphs of graph/lower.py with bodies in place of plugins."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from ernie_export.graph import operators, tensorrt_rtx, write

SITE = Path(__file__).parent / "site"

#: As a plugin: fp16 at its edges, cos and sin in fp32.
ATTENTION = """
CachedAttention <num_heads, kv_num_heads, scale>
    (query, key, value, past_key, past_value, cos, sin, position_ids, seqlens_k, total_sequence_length)
    => (output, present_key, present_value) {
    q = Cast <to: int = 1> (query)
    k = Cast <to: int = 1> (key)
    v = Cast <to: int = 1> (value)
    wide, present_key, present_value = ernie.WideAttention
        <num_heads: int = @num_heads, kv_num_heads: int = @kv_num_heads, scale: float = @scale>
        (q, k, v, past_key, past_value, cos, sin, position_ids, seqlens_k, total_sequence_length)
    output = Cast <to: int = 10> (wide)
}
"""

#: Of words of four bytes, low byte first: with shifts, where TensorRT's own body has to divide.
DEQUANTIZE = """
Dequantize <bits, block_size> (data, scales) => (values) {
    n0 = Constant <value_int: int = 0> ()
    first = Constant <value_ints: ints = [0]> ()
    last = Constant <value_ints: ints = [-1]> ()
    word = Constant <value_int: int = 32> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    width = Constant <value_int: int = @bits> ()
    block_0 = Constant <value_int: int = @block_size> ()
    block = Unsqueeze (block_0, first)
    levels = Pow (two, width)
    top = Sub (levels, one)
    mask = Cast <to: int = 12> (top)
    half_0 = Div (levels, two)
    half = Cast <to: int = 1> (half_0)
    steps = Range (n0, word, width)
    shifts = Cast <to: int = 12> (steps)
    words = Cast <to: int = 12> (data)
    column = Unsqueeze (words, last)
    shifted = BitShift <direction: string = "RIGHT"> (column, shifts)
    codes = BitwiseAnd (shifted, mask)
    floats = Cast <to: int = 1> (codes)
    scales_shape = Shape (scales)
    blocks_shape = Concat <axis: int = 0> (scales_shape, block)
    blocks = Reshape (floats, blocks_shape)
    centred = Sub (blocks, half)
    scales32 = Cast <to: int = 1> (scales)
    factors = Unsqueeze (scales32, last)
    scaled = Mul (centred, factors)
    outer = Shape <end: int = -1> (data)
    rows_shape = Concat <axis: int = 0> (outer, last)
    values = Reshape (scaled, rows_shape)
}
"""


def bodies(phase: tensorrt_rtx.Phase) -> dict[str, str]:
    wide = tensorrt_rtx.CACHED_ATTENTION.replace("CachedAttention", "WideAttention", 1)
    own = {"CachedAttention": ATTENTION, "WideAttention": wide, "Dequantize": DEQUANTIZE}
    return tensorrt_rtx.bodies(phase) | own


def prepare(graph: bytes, phase: tensorrt_rtx.Phase, folder: Path) -> None:
    """Make the double in `folder` able to build this very graph."""
    folder.mkdir(exist_ok=True)
    (folder / f"{hashlib.sha256(graph).hexdigest()}.onnx").write_bytes(runnable(graph, phase))


def runnable(graph: bytes, phase: tensorrt_rtx.Phase) -> bytes:
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        kept = [each for each in node.attribute if not each.name.startswith("plugin_")]
        del node.attribute[:]
        node.attribute.extend(kept)
    model.functions.extend(write.functions(model, bodies(phase), tensorrt_rtx.OPSETS))
    del model.opset_import[:]
    for domain, version in {"": tensorrt_rtx.OPSETS[""], operators.DOMAIN: operators.VERSION}.items():
        model.opset_import.add(domain=domain, version=version)
    return model.SerializeToString()
