"""The bodies for TensorRT for RTX: standard operators in the form from which its compiler makes one kernel.

Weights stay packed until a kernel has read them.  In decode (one new token a row) a product is written as
Mul and ReduceSum: the compiler fuses Gather, unpacking, product and sum into one kernel that reads the bytes
of the chosen experts and nothing else (benchmarks/rtx.py shows its layers).  In prefill it is a MatMul in
fp16: the weights are unpacked once for all tokens, and every expert is run on all of them.

Arithmetic in place of bit operations, because RTX's bytes are signed and know no shifts: the i-th code of a
byte is floor(byte / 2^(i·bits)) mod 2^bits, exact in fp32.  Attention is in fp16, for RTX has it in no wider
type; the cache has the type of the graph's inputs, which graph/lower.py makes fp16.
"""

from __future__ import annotations

import re
from typing import Literal

from ernie_export.graph import portable

#: TensorScatter begins with 24.
OPSETS = {"": 24, "ernie": 1}

Phase = Literal["prefill", "decode"]

# Bytes may come as unsigned (-> 0 … 255) or signed (-> -128 … 127): the same bits mean the same.
DEQUANTIZE = """
Dequantize <bits, block_size> (data, scales) => (values) {
    last = Constant <value_ints: ints = [-1]> ()
    first = Constant <value_ints: ints = [0]> ()
    zero = Constant <value_float: float = 0.0> ()
    two = Constant <value_float: float = 2.0> ()
    all_levels = Constant <value_float: float = 256.0> ()
    n0 = Constant <value_int: int = 0> ()
    n8 = Constant <value_int: int = 8> ()
    width = Constant <value_int: int = @bits> ()
    block_0 = Constant <value_int: int = @block_size> ()
    block = Unsqueeze (block_0, first)
    width32 = Cast <to: int = 1> (width)
    levels = Pow (two, width32)
    half = Div (levels, two)
    steps = Range (n0, n8, width)
    shifts = Cast <to: int = 1> (steps)
    divisors = Pow (two, shifts)
    signed = Cast <to: int = 1> (data)
    below = Less (signed, zero)
    wrapped = Add (signed, all_levels)
    byte = Where (below, wrapped, signed)
    bytes = Unsqueeze (byte, last)
    quotients = Div (bytes, divisors)
    shifted = Floor (quotients)
    rest = Div (shifted, levels)
    above = Floor (rest)
    others = Mul (above, levels)
    codes = Sub (shifted, others)
    scales_shape = Shape (scales)
    blocks_shape = Concat <axis: int = 0> (scales_shape, block)
    blocks = Reshape (codes, blocks_shape)
    centred = Sub (blocks, half)
    scales32 = Cast <to: int = 1> (scales)
    factors = Unsqueeze (scales32, last)
    scaled = Mul (centred, factors)
    outer = Shape <end: int = -1> (data)
    rows_shape = Concat <axis: int = 0> (outer, last)
    values = Reshape (scaled, rows_shape)
}
"""

LINEAR_DECODE = """
QuantizedLinear <N, K, bits, block_size> (x, weight, scales) => (y) {
    last = Constant <value_ints: ints = [-1]> ()
    before_last = Constant <value_ints: ints = [-2]> ()
    rows = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (weight, scales)
    x32 = Cast <to: int = 1> (x)
    column = Unsqueeze (x32, before_last)
    products = Mul (column, rows)
    sums = ReduceSum <keepdims: int = 0> (products, last)
    y = CastLike (sums, x)
}
"""

LINEAR_PREFILL = """
QuantizedLinear <N, K, bits, block_size> (x, weight, scales) => (y) {
    rows32 = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (weight, scales)
    rows = Cast <to: int = 10> (rows32)
    columns = Transpose <perm: ints = [1, 0]> (rows)
    x16 = Cast <to: int = 10> (x)
    sums = MatMul (x16, columns)
    y = CastLike (sums, x)
}
"""

# gate_up [X·k,2I,H] and down [X·k,H,I] are the chosen experts' own.
CHOSEN_EXPERTS = """
ChosenExperts <k> (hidden, scores, gate_up, down) => (y) {
    axis_1 = Constant <value_ints: ints = [1]> ()
    last = Constant <value_ints: ints = [-1]> ()
    one_row = Constant <value_ints: ints = [1]> ()
    pair = Constant <value_ints: ints = [0, -1, 2]> ()
    choices_0 = Constant <value_int: int = @k> ()
    first = Constant <value_ints: ints = [0]> ()
    choices = Unsqueeze (choices_0, first)
    shape = Shape (hidden)
    width = Shape <start: int = -1> (hidden)
    tokens_shape = Concat <axis: int = 0> (last, one_row, width)
    chosen_shape = Concat <axis: int = 0> (last, choices, width)
    scores_shape = Concat <axis: int = 0> (last, choices, one_row)
    repeats = Concat <axis: int = 0> (one_row, choices, one_row)
    hidden32 = Cast <to: int = 1> (hidden)
    tokens = Reshape (hidden32, tokens_shape)
    repeated = Tile (tokens, repeats)
    column = Reshape (repeated, tokens_shape)
    gate_up32 = Cast <to: int = 1> (gate_up)
    products = Mul (column, gate_up32)
    both = ReduceSum <keepdims: int = 0> (products, last)
    pairs = Reshape (both, pair)
    gate_1, up_1 = Split <axis: int = -1, num_outputs: int = 2> (pairs)
    gate = Squeeze (gate_1, last)
    up = Squeeze (up_1, last)
    sigmoid = Sigmoid (gate)
    silu = Mul (gate, sigmoid)
    inner = Mul (silu, up)
    inner_column = Unsqueeze (inner, axis_1)
    down32 = Cast <to: int = 1> (down)
    inner_products = Mul (inner_column, down32)
    outputs = ReduceSum <keepdims: int = 0> (inner_products, last)
    by_choice = Reshape (outputs, chosen_shape)
    scores32 = Cast <to: int = 1> (scores)
    weights = Reshape (scores32, scores_shape)
    weighted = Mul (by_choice, weights)
    sum32 = ReduceSum <keepdims: int = 0> (weighted, axis_1)
    sum = CastLike (sum32, hidden)
    y = Reshape (sum, shape)
}
"""

EXPERTS_DECODE = """
MoEExperts <num_experts, k, bits, block_size>
    (hidden, indices, scores, gate_up, gate_up_scales, down, down_scales) => (y) {
    last = Constant <value_ints: ints = [-1]> ()
    chosen = Reshape (indices, last)
    gate_up_bytes = Gather <axis: int = 0> (gate_up, chosen)
    gate_up_factors = Gather <axis: int = 0> (gate_up_scales, chosen)
    down_bytes = Gather <axis: int = 0> (down, chosen)
    down_factors = Gather <axis: int = 0> (down_scales, chosen)
    gate_up_rows = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (gate_up_bytes, gate_up_factors)
    down_rows = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (down_bytes, down_factors)
    y = ernie.ChosenExperts <k: int = @k> (hidden, scores, gate_up_rows, down_rows)
}
"""

EXPERTS_DECODE_FLOAT = """
MoEExperts <num_experts, k, bits, block_size>
    (hidden, indices, scores, gate_up, gate_up_scales, down, down_scales) => (y) {
    last = Constant <value_ints: ints = [-1]> ()
    chosen = Reshape (indices, last)
    gate_up_rows = Gather <axis: int = 0> (gate_up, chosen)
    down_rows = Gather <axis: int = 0> (down, chosen)
    y = ernie.ChosenExperts <k: int = @k> (hidden, scores, gate_up_rows, down_rows)
}
"""

EXPERTS_PREFILL = """
MoEExperts <num_experts, k, bits, block_size>
    (hidden, indices, scores, gate_up, gate_up_scales, down, down_scales) => (y) {
    gate_up_rows = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (gate_up, gate_up_scales)
    down_rows = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (down, down_scales)
    hidden16 = Cast <to: int = 10> (hidden)
    scores16 = Cast <to: int = 10> (scores)
    y16 = ernie.AllExperts <num_experts: int = @num_experts, k: int = @k>
        (hidden16, indices, scores16, gate_up_rows, down_rows)
    y = CastLike (y16, hidden)
}
"""

EXPERTS_PREFILL_FLOAT = """
MoEExperts <num_experts, k, bits, block_size>
    (hidden, indices, scores, gate_up, gate_up_scales, down, down_scales) => (y) {
    hidden16 = Cast <to: int = 10> (hidden)
    scores16 = Cast <to: int = 10> (scores)
    y16 = ernie.AllExperts <num_experts: int = @num_experts, k: int = @k> (hidden16, indices, scores16, gate_up, down)
    y = CastLike (y16, hidden)
}
"""

# The cache has one length, past and present: TensorScatter becomes RTX's in-place cache update.
CACHED_ATTENTION = """
CachedAttention <num_heads, kv_num_heads, scale>
    (query, key, value, past_key, past_value, cos, sin, position_ids, seqlens_k, total_sequence_length)
    => (output, present_key, present_value) {
    n0 = Constant <value_int: int = 0> ()
    n1 = Constant <value_int: int = 1> ()
    axis_0 = Constant <value_ints: ints = [0]> ()
    axis_1 = Constant <value_ints: ints = [1]> ()
    axis_2 = Constant <value_ints: ints = [2]> ()
    last = Constant <value_ints: ints = [-1]> ()
    same_twice = Constant <value_ints: ints = [0, 0]> ()
    heads = Constant <value_int: int = @num_heads> ()
    heads_1 = Unsqueeze (heads, axis_0)
    kv_heads = Constant <value_int: int = @kv_num_heads> ()
    kv_heads_1 = Unsqueeze (kv_heads, axis_0)
    query_shape = Concat <axis: int = 0> (same_twice, heads_1, last)
    key_shape = Concat <axis: int = 0> (same_twice, kv_heads_1, last)
    flat_shape = Constant <value_ints: ints = [0, 0, -1]> ()

    turned_query = RotaryEmbedding <interleaved: int = 1, num_heads: int = @num_heads> (query, cos, sin, position_ids)
    turned_key = RotaryEmbedding <interleaved: int = 1, num_heads: int = @kv_num_heads> (key, cos, sin, position_ids)
    query_heads = Reshape (turned_query, query_shape)
    key_heads = Reshape (turned_key, key_shape)
    value_heads = Reshape (value, key_shape)
    q = Transpose <perm: ints = [0, 2, 1, 3]> (query_heads)
    k = Transpose <perm: ints = [0, 2, 1, 3]> (key_heads)
    v = Transpose <perm: ints = [0, 2, 1, 3]> (value_heads)

    length_1 = Shape <start: int = 2, end: int = 3> (past_key)
    length = Squeeze (length_1, axis_0)
    new_1 = Shape <start: int = 1, end: int = 2> (query)
    new = Squeeze (new_1, axis_0)
    lengths = Cast <to: int = 7> (seqlens_k)
    ends = Add (lengths, n1)
    begins = Sub (ends, new)
    starts = Max (begins, n0)
    k_cached = CastLike (k, past_key)
    v_cached = CastLike (v, past_value)
    present_key = TensorScatter <axis: int = 2> (past_key, k_cached, starts)
    present_value = TensorScatter <axis: int = 2> (past_value, v_cached, starts)

    steps = Range (n0, new, n1)
    start_columns = Unsqueeze (starts, axis_1)
    rows = Add (start_columns, steps)
    columns = Range (n0, length, n1)
    row_limits = Unsqueeze (rows, axis_2)
    visible = LessOrEqual (columns, row_limits)
    mask = Unsqueeze (visible, axis_1)
    q16 = Cast <to: int = 10> (q)
    k16 = Cast <to: int = 10> (present_key)
    v16 = Cast <to: int = 10> (present_value)
    attended16 = Attention <scale: float = @scale> (q16, k16, v16, mask)
    attended_rows = Transpose <perm: ints = [0, 2, 1, 3]> (attended16)
    flat = Reshape (attended_rows, flat_shape)
    output = CastLike (flat, query)
}
"""

# One graph for both phases, for a runtime that runs it as it is: ONNX Runtime, when a bundle is validated.
EITHER = """
NAME ATTRIBUTES (INPUTS) => (y) {
    n1 = Constant <value_int: int = 1> ()
    axis_0 = Constant <value_ints: ints = [0]> ()
    new_1 = Shape <start: int = 1, end: int = 2> (FIRST)
    new = Squeeze (new_1, axis_0)
    decoding = Equal (new, n1)
    y = If (decoding) <
        then_branch = decode () => (y_decode) { y_decode = ernie.NAMEDecode CALL (INPUTS) },
        else_branch = prefill () => (y_prefill) { y_prefill = ernie.NAMEPrefill CALL (INPUTS) }
    >
}
"""

_PREFILL = {
    "QuantizedLinear": LINEAR_PREFILL,
    "MoEExperts": EXPERTS_PREFILL,
    "MoEExperts:float": EXPERTS_PREFILL_FLOAT,
}
_DECODE = {
    "QuantizedLinear": LINEAR_DECODE,
    "MoEExperts": EXPERTS_DECODE,
    "MoEExperts:float": EXPERTS_DECODE_FLOAT,
}
#: Operators whose bodies are those of packed integers, with another Dequantize, for small floats too.
PACKED = ("QuantizedLinear", "MoEExperts")


def bodies(phase: Phase) -> dict[str, str]:
    """The bodies of one phase alone, of which an engine is built."""
    result = _shared() | (_PREFILL if phase == "prefill" else _DECODE)
    for name in PACKED:
        result |= portable.small_floats(name, result[name])
    return result


def bodies_of_both_phases() -> dict[str, str]:
    """Bodies that look at the number of new tokens: the bundle's graph."""
    result = _shared()
    for key in _DECODE:
        name, _, overload = key.partition(":")
        own = name + overload.capitalize()
        result |= {key: _either(name, own, _DECODE[key])} | _of_each(name, own, _DECODE[key], _PREFILL[key])
    for name in PACKED:
        for form in portable.SMALL_FLOATS:
            own = name + form.capitalize()
            decode, prefill = (portable.unpacked(texts[name], form) for texts in (_DECODE, _PREFILL))
            result[f"{name}:{form}"] = portable.with_numbers(_either(name, own, decode), form)
            result |= _of_each(name, own, decode, prefill)
    return result


def _of_each(name: str, own: str, decode: str, prefill: str) -> dict[str, str]:
    """What `_either` calls."""
    return {
        f"{own}{phase}": text.replace(name, f"{own}{phase}", 1)
        for phase, text in (("Decode", decode), ("Prefill", prefill))
    }


def _shared() -> dict[str, str]:
    own = {"Dequantize": DEQUANTIZE, "ChosenExperts": CHOSEN_EXPERTS, "CachedAttention": CACHED_ATTENTION}
    return portable.BODIES | own


def _either(name: str, own: str, text: str) -> str:
    """The body that calls the one or the other; its signature is that of `text`."""
    attributes, inputs = re.match(r"\s*\w+ <([^>]*)>\s*\(([^)]*)\)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    call = ", ".join(f"{each}: int = @{each}" for each in attributes.split(", "))
    body = EITHER.replace("NAMEDecode", f"{own}Decode").replace("NAMEPrefill", f"{own}Prefill")
    return (
        body.replace("NAME", name)
        .replace("ATTRIBUTES", f"<{attributes}>")
        .replace("CALL", f"<{call}>")
        .replace("INPUTS", inputs)
        .replace("FIRST", inputs.split(",")[0])
    )
