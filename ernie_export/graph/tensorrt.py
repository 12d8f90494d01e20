"""The bodies for TensorRT: our plugins (plugins/tensorrt) where they do an operator, standard operators elsewhere.

A plugin reads and gives fp16; between them the values are fp32, as in the main graph.  Packed weights are
INT32 words of their four bytes, low byte first: TensorRT's Gather and Cast take no INT8, and plugins take words.
Nothing here is newer than opset 20, so that the parser of every TensorRT that is taken knows it.
"""

from __future__ import annotations

from ernie_export.graph import tensorrt_rtx
from ernie_export.graph.tensorrt_rtx import Phase

#: The domain of the nodes that are plugins, until the functions around them are inlined.
PLUGINS = "ernie.plugins"
#: What RTX's bodies are written in; `lower` declares OPSET, since no node is left that needs more.
OPSETS = {**tensorrt_rtx.OPSETS, PLUGINS: 1}
OPSET = 20
#: Widths of packed weights that the plugins read.
BITS = (4, 8)

#: How TensorRT's parser finds a plugin: by the node's type, and these two attributes.
_FOUND = 'plugin_namespace: string = "ernie", plugin_version: string = "1"'

# Mod in Python's sense: a byte of 0 … 255 also of a negative word, and what is left divides without rest.
DEQUANTIZE = """
Dequantize <bits, block_size> (data, scales) => (values) {
    last = Constant <value_ints: ints = [-1]> ()
    byte_levels = Constant <value: tensor = int32 {256}> ()
    byte_0 = Mod (data, byte_levels)
    rest_0 = Sub (data, byte_0)
    word_1 = Div (rest_0, byte_levels)
    byte_1 = Mod (word_1, byte_levels)
    rest_1 = Sub (word_1, byte_1)
    word_2 = Div (rest_1, byte_levels)
    byte_2 = Mod (word_2, byte_levels)
    rest_2 = Sub (word_2, byte_2)
    word_3 = Div (rest_2, byte_levels)
    byte_3 = Mod (word_3, byte_levels)
    column_0 = Unsqueeze (byte_0, last)
    column_1 = Unsqueeze (byte_1, last)
    column_2 = Unsqueeze (byte_2, last)
    column_3 = Unsqueeze (byte_3, last)
    columns = Concat <axis: int = -1> (column_0, column_1, column_2, column_3)
    outer = Shape <end: int = -1> (data)
    rows_shape = Concat <axis: int = 0> (outer, last)
    bytes = Reshape (columns, rows_shape)
    values = ernie.DequantizeBytes <bits: int = @bits, block_size: int = @block_size> (bytes, scales)
}
"""

RMS_NORMALIZATION = """
RMSNormalization <epsilon> (x, weight) => (y) {
    last = Constant <value_ints: ints = [-1]> ()
    epsilon = Constant <value_float: float = @epsilon> ()
    squares = Mul (x, x)
    mean = ReduceMean <keepdims: int = 1> (squares, last)
    shifted = Add (mean, epsilon)
    root = Sqrt (shifted)
    normalized = Div (x, root)
    y = Mul (normalized, weight)
}
"""

MOE_ROUTING = """
MoERouting <k, norm_min> (hidden, weight, bias) => (indices, scores) {
    hidden16 = Cast <to: int = 10> (hidden)
    indices, scores16 = ernie.plugins.MoERouting <k: int = @k, norm_min: float = @norm_min, FOUND>
        (hidden16, weight, bias)
    scores = Cast <to: int = 1> (scores16)
}
"""

MOE_EXPERTS = """
MoEExperts <num_experts, k, bits, block_size>
    (hidden, indices, scores, gate_up, gate_up_scales, down, down_scales) => (y) {
    hidden16 = Cast <to: int = 10> (hidden)
    scores16 = Cast <to: int = 10> (scores)
    y16 = ernie.plugins.MoEExperts <num_experts: int = @num_experts, k: int = @k, bits: int = @bits,
        block_size: int = @block_size, FOUND>
        (hidden16, indices, scores16, gate_up, gate_up_scales, down, down_scales)
    y = Cast <to: int = 1> (y16)
}
"""

QUANTIZED_LINEAR = """
QuantizedLinear <N, K, bits, block_size> (x, weight, scales) => (y) {
    x16 = Cast <to: int = 10> (x)
    y16 = ernie.plugins.QuantizedLinear <N: int = @N, K: int = @K, bits: int = @bits, block_size: int = @block_size,
        FOUND> (x16, weight, scales)
    y = Cast <to: int = 1> (y16)
}
"""

# The plugin reads the lengths of all rows, and no total.
CACHED_ATTENTION = """
CachedAttention <num_heads, kv_num_heads, scale>
    (query, key, value, past_key, past_value, cos, sin, position_ids, seqlens_k, total_sequence_length)
    => (output, present_key, present_value) {
    not_read = Constant <value: tensor = int32 {0}> ()
    query16 = Cast <to: int = 10> (query)
    key16 = Cast <to: int = 10> (key)
    value16 = Cast <to: int = 10> (value)
    output16, present_key, present_value = ernie.plugins.CachedAttention <num_heads: int = @num_heads,
        kv_num_heads: int = @kv_num_heads, scale: float = @scale, FOUND>
        (query16, key16, value16, past_key, past_value, cos, sin, position_ids, seqlens_k, not_read)
    output = Cast <to: int = 1> (output16)
}
"""


def bodies(phase: Phase) -> dict[str, str]:
    """The bodies of one phase, of which an engine is built."""
    plugins = {
        "MoERouting": MOE_ROUTING,
        "MoEExperts": MOE_EXPERTS,
        "QuantizedLinear": QUANTIZED_LINEAR,
        "CachedAttention": CACHED_ATTENTION,
    }
    own = {name: text.replace("FOUND", _FOUND) for name, text in plugins.items()}
    return tensorrt_rtx.bodies(phase) | unpacking() | {"RMSNormalization": RMS_NORMALIZATION} | own


def unpacking() -> dict[str, str]:
    """`Dequantize` of words."""
    of_bytes = tensorrt_rtx.DEQUANTIZE.replace("Dequantize", "DequantizeBytes", 1)
    return {"Dequantize": DEQUANTIZE, "DequantizeBytes": of_bytes}
