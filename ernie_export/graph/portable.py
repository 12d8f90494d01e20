"""The bodies that any ONNX runtime can run: standard operators only, exact, slow.

Each is a model-local function in ONNX's text form.  Letters in comments as in model/operators.py;
X the number of tokens B·S.
"""

from __future__ import annotations

import re

from ernie_export.quantize.nvfp4 import NUMBERS

OPSET = 23
OPSETS = {"": OPSET, "ernie": 1}

# The i-th value of a byte is (byte >> i·bits) & (2^bits − 1), less 2^(bits − 1); the same for 2, 4 and 8 bits.
DEQUANTIZE = """
Dequantize <bits, block_size> (data, scales) => (values) {
    n0 = Constant <value_int: int = 0> ()
    n0_1 = Constant <value_ints: ints = [0]> ()
    n1 = Constant <value_int: int = 1> ()
    n2 = Constant <value_int: int = 2> ()
    n8 = Constant <value_int: int = 8> ()
    last = Constant <value_ints: ints = [-1]> ()
    width = Constant <value_int: int = @bits> ()
    block_0 = Constant <value_int: int = @block_size> ()
    block = Unsqueeze (block_0, n0_1)
    levels = Pow (n2, width)
    top = Sub (levels, n1)
    mask = Cast <to: int = 2> (top)
    half = Div (levels, n2)
    zero_point = Cast <to: int = 1> (half)
    steps = Range (n0, n8, width)
    shifts = Cast <to: int = 2> (steps)
    bytes = Unsqueeze (data, last)
    shifted = BitShift <direction: string = "RIGHT"> (bytes, shifts)
    codes = BitwiseAnd (shifted, mask)
    floats = Cast <to: int = 1> (codes)
    scales_shape = Shape (scales)
    blocks_shape = Concat <axis: int = 0> (scales_shape, block)
    blocks = Reshape (floats, blocks_shape)
    centred = Sub (blocks, zero_point)
    scales32 = Cast <to: int = 1> (scales)
    factors = Unsqueeze (scales32, last)
    scaled = Mul (centred, factors)
    outer = Shape <end: int = -1> (data)
    rows_shape = Concat <axis: int = 0> (outer, last)
    values = Reshape (scaled, rows_shape)
}
"""

# FP8 and NVFP4 (quantize/fp8.py, nvfp4.py), when what is E4M3 has become fp32 (`small_floats`): fp8's data are
# numbers already, and nvfp4's scales those of the blocks times that of the matrix.
DEQUANTIZE_FP8 = """
DequantizeFp8 <bits, block_size> (data, scales) => (values) {
    values = Mul (data, scales)
}
"""

# Both numbers of a byte in one row of a table, in which a signed byte finds them too: it begins with −128.
DEQUANTIZE_NVFP4 = """
DequantizeNvfp4 <bits, block_size> (data, scales) => (values) {
    last = Constant <value_ints: ints = [-1]> ()
    first = Constant <value_ints: ints = [0]> ()
    row = Constant <value_ints: ints = [-1, 2]> ()
    block_0 = Constant <value_int: int = @block_size> ()
    block = Unsqueeze (block_0, first)
    numbers = Constant <value_floats: floats = [NUMBERS]> ()
    table = Reshape (numbers, row)
    begin = Constant <value: tensor = int32 {128}> ()
    bytes = Cast <to: int = 6> (data)
    rows = Add (bytes, begin)
    pairs = Gather <axis: int = 0> (table, rows)
    scales_shape = Shape (scales)
    blocks_shape = Concat <axis: int = 0> (scales_shape, block)
    blocks = Reshape (pairs, blocks_shape)
    factors = Unsqueeze (scales, last)
    scaled = Mul (blocks, factors)
    outer = Shape <end: int = -1> (data)
    values_shape = Concat <axis: int = 0> (outer, last)
    values = Reshape (scaled, values_shape)
}
""".replace(
    "NUMBERS", ", ".join(f"{NUMBERS[byte & 15]}, {NUMBERS[byte >> 4 & 15]}" for byte in range(-128, 256))
)

MOE_ROUTING = """
MoERouting <k, norm_min> (hidden, weight, bias) => (indices, scores) {
    first = Constant <value_ints: ints = [0]> ()
    last = Constant <value_ints: ints = [-1]> ()
    k = Constant <value_int: int = @k> ()
    count = Unsqueeze (k, first)
    floor = Constant <value_float: float = @norm_min> ()
    hidden32 = Cast <to: int = 1> (hidden)
    columns = Transpose <perm: ints = [1, 0]> (weight)
    logits = MatMul (hidden32, columns)
    probability = Softmax <axis: int = -1> (logits)
    choice = Add (probability, bias)
    best, indices = TopK (choice, count)
    chosen = GatherElements <axis: int = -1> (probability, indices)
    sum = ReduceSum <keepdims: int = 1> (chosen, last)
    divisor = Max (sum, floor)
    scores32 = Div (chosen, divisor)
    scores = CastLike (scores32, hidden)
}
"""

QUANTIZED_LINEAR = """
QuantizedLinear <N, K, bits, block_size> (x, weight, scales) => (y) {
    rows32 = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (weight, scales)
    rows = CastLike (rows32, x)
    columns = Transpose <perm: ints = [1, 0]> (rows)
    y = MatMul (x, columns)
}
"""

QUANTIZED_EMBEDDING = """
QuantizedEmbedding <bits, block_size> (ids, weight, scales) => (y) {
    data = Gather <axis: int = 0> (weight, ids)
    factors = Gather <axis: int = 0> (scales, ids)
    y = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (data, factors)
}
"""

# Every expert is run on every token, and what was not chosen is left out of the sum.
ALL_EXPERTS = """
AllExperts <num_experts, k> (hidden, indices, scores, gate_up, down) => (y) {
    first = Constant <value_ints: ints = [0]> ()
    last = Constant <value_ints: ints = [-1]> ()
    pair = Constant <value_ints: ints = [-1, 2]> ()
    expert_count = Constant <value_int: int = @num_experts> ()
    experts = Unsqueeze (expert_count, first)
    choices = Constant <value_int: int = @k> ()
    choices_1 = Unsqueeze (choices, first)
    chosen_shape = Concat <axis: int = 0> (last, choices_1)
    shape = Shape (hidden)
    width = Shape <start: int = -1> (hidden)
    tokens_shape = Concat <axis: int = 0> (last, width)
    tokens = Reshape (hidden, tokens_shape)
    gate_up_rows = CastLike (gate_up, hidden)
    gate_up_columns = Transpose <perm: ints = [0, 2, 1]> (gate_up_rows)
    both = MatMul (tokens, gate_up_columns)
    both_outer = Shape <end: int = 2> (both)
    both_shape = Concat <axis: int = 0> (both_outer, pair)
    pairs = Reshape (both, both_shape)
    gate_1, up_1 = Split <axis: int = -1, num_outputs: int = 2> (pairs)
    gate = Squeeze (gate_1, last)
    up = Squeeze (up_1, last)
    sigmoid = Sigmoid (gate)
    silu = Mul (gate, sigmoid)
    inner = Mul (silu, up)
    down_rows = CastLike (down, hidden)
    down_columns = Transpose <perm: ints = [0, 2, 1]> (down_rows)
    outputs = MatMul (inner, down_columns)
    chosen = Reshape (indices, chosen_shape)
    chosen_scores = Reshape (scores, chosen_shape)
    token_count = Shape <end: int = 1> (chosen)
    dense_shape = Concat <axis: int = 0> (token_count, experts)
    nothing32 = ConstantOfShape (dense_shape)
    nothing = CastLike (nothing32, hidden)
    dense = ScatterElements <axis: int = 1> (nothing, chosen, chosen_scores)
    by_expert = Transpose <perm: ints = [1, 0]> (dense)
    weights = Unsqueeze (by_expert, last)
    zero32 = Constant <value_float: float = 0.0> ()
    zero = CastLike (zero32, hidden)
    left_out = Equal (weights, zero)
    weighted = Mul (outputs, weights)
    kept = Where (left_out, zero, weighted)
    sum = ReduceSum <keepdims: int = 0> (kept, first)
    y = Reshape (sum, shape)
}
"""

MOE_EXPERTS_FLOAT = """
MoEExperts <num_experts, k, bits, block_size>
    (hidden, indices, scores, gate_up, gate_up_scales, down, down_scales) => (y) {
    y = ernie.AllExperts <num_experts: int = @num_experts, k: int = @k> (hidden, indices, scores, gate_up, down)
}
"""

MOE_EXPERTS = """
MoEExperts <num_experts, k, bits, block_size>
    (hidden, indices, scores, gate_up, gate_up_scales, down, down_scales) => (y) {
    gate_up_rows = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (gate_up, gate_up_scales)
    down_rows = ernie.Dequantize <bits: int = @bits, block_size: int = @block_size> (down, down_scales)
    y = ernie.AllExperts <num_experts: int = @num_experts, k: int = @k>
        (hidden, indices, scores, gate_up_rows, down_rows)
}
"""

CACHED_ATTENTION = """
CachedAttention <num_heads, kv_num_heads, scale>
    (query, key, value, past_key, past_value, cos, sin, position_ids, seqlens_k, total_sequence_length)
    => (output, present_key, present_value) {
    n0 = Constant <value_int: int = 0> ()
    n1 = Constant <value_int: int = 1> ()
    axis_0 = Constant <value_ints: ints = [0]> ()
    axis_1 = Constant <value_ints: ints = [1]> ()
    axis_2 = Constant <value_ints: ints = [2]> ()
    axes_1_3 = Constant <value_ints: ints = [1, 3]> ()
    last = Constant <value_ints: ints = [-1]> ()
    same_twice = Constant <value_ints: ints = [0, 0]> ()
    heads = Constant <value_int: int = @num_heads> ()
    heads_1 = Unsqueeze (heads, axis_0)
    kv_heads = Constant <value_int: int = @kv_num_heads> ()
    kv_heads_1 = Unsqueeze (kv_heads, axis_0)
    query_shape = Concat <axis: int = 0> (same_twice, heads_1, last)
    key_shape = Concat <axis: int = 0> (same_twice, kv_heads_1, last)
    flat_shape = Constant <value_ints: ints = [0, 0, -1]> ()
    none_before = Constant <value_ints: ints = [0, 0, 0, 0, 0, 0]> ()

    turned_query = RotaryEmbedding <interleaved: int = 1, num_heads: int = @num_heads> (query, cos, sin, position_ids)
    turned_key = RotaryEmbedding <interleaved: int = 1, num_heads: int = @kv_num_heads> (key, cos, sin, position_ids)
    query_heads = Reshape (turned_query, query_shape)
    key_heads = Reshape (turned_key, key_shape)
    value_heads = Reshape (value, key_shape)
    q = Transpose <perm: ints = [0, 2, 1, 3]> (query_heads)
    k = Transpose <perm: ints = [0, 2, 1, 3]> (key_heads)
    v = Transpose <perm: ints = [0, 2, 1, 3]> (value_heads)

    total = Cast <to: int = 7> (total_sequence_length)
    total_1 = Unsqueeze (total, axis_0)
    past_length = Shape <start: int = 2, end: int = 3> (past_key)
    length_1 = Max (past_length, total_1)
    length = Squeeze (length_1, axis_0)
    growth = Sub (length_1, past_length)
    pads = Concat <axis: int = 0> (none_before, growth, axis_0)
    grown_key = Pad (past_key, pads)
    grown_value = Pad (past_value, pads)

    new_1 = Shape <start: int = 1, end: int = 2> (query)
    new = Squeeze (new_1, axis_0)
    lengths = Cast <to: int = 7> (seqlens_k)
    ends = Add (lengths, n1)
    begins = Sub (ends, new)
    starts = Max (begins, n0)
    steps = Range (n0, new, n1)
    start_columns = Unsqueeze (starts, axis_1)
    rows = Add (start_columns, steps)
    row_cells = Unsqueeze (rows, axes_1_3)
    cells_shape = Shape (k)
    cells = Expand (row_cells, cells_shape)
    present_key = ScatterElements <axis: int = 2> (grown_key, cells, k)
    present_value = ScatterElements <axis: int = 2> (grown_value, cells, v)

    columns = Range (n0, length, n1)
    row_limits = Unsqueeze (rows, axis_2)
    visible = LessOrEqual (columns, row_limits)
    mask = Unsqueeze (visible, axis_1)
    attended = Attention <scale: float = @scale> (q, present_key, present_value, mask)
    attended_rows = Transpose <perm: ints = [0, 2, 1, 3]> (attended)
    output = Reshape (attended_rows, flat_shape)
}
"""

#: Names of packed weights and of their scales, where a body has them.
_PACKED = (("weight", "scales"), ("gate_up", "gate_up_scales"), ("down", "down_scales"))
#: Formats whose codes are small floats, and what unpacks them.
SMALL_FLOATS = {"fp8": "DequantizeFp8", "nvfp4": "DequantizeNvfp4"}


def small_floats(name: str, text: str) -> dict[str, str]:
    """The overloads for fp8 and nvfp4 of an operator, of its body for packed integers."""
    return {f"{name}:{form}": with_numbers(unpacked(text, form), form) for form in SMALL_FLOATS}


def unpacked(text: str, form: str) -> str:
    """With that format's Dequantize."""
    return text.replace("ernie.Dequantize ", f"ernie.{SMALL_FLOATS[form]} ")


def with_numbers(text: str, form: str) -> str:
    """What is E4M3, fp8's data and nvfp4's scales, becomes fp32 where a body begins, since Gather takes no E4M3. The
    scales of nvfp4's matrices are further inputs. Here and not in a function, or ONNX Runtime takes no E4M3 for it."""
    head, _, rest = text.partition("{\n")
    packed = [pair for pair in _PACKED if re.search(rf"\b{pair[0]}\b", head)]
    lines, further = ["one = Constant <value_float: float = 1.0> ()"], ""
    for data, scales in packed:
        name = data if form == "fp8" else scales
        rest = re.sub(rf"\b{name}\b", f"{name}_32", rest)
        if form == "fp8":
            lines.append(f"{data}_32 = DequantizeLinear ({data}, one)")
        else:
            own = scales.replace("scales", "matrix_scales")
            further += f", {own}"
            lines += [
                f"{scales}_8 = DequantizeLinear ({scales}, one)",
                f"{scales}_32 = Mul ({scales}_8, {own})",
            ]
    head = head.replace(") =>", f"{further}) =>")
    return head + "{\n" + "".join(f"    {line}\n" for line in lines) + rest


#: By operator, and by overload where an operator has one: bodies for float and for packed weights.
BODIES = {
    "Dequantize": DEQUANTIZE,
    "MoERouting": MOE_ROUTING,
    "AllExperts": ALL_EXPERTS,
    "MoEExperts:float": MOE_EXPERTS_FLOAT,
    "MoEExperts": MOE_EXPERTS,
    "QuantizedLinear": QUANTIZED_LINEAR,
    "QuantizedEmbedding": QUANTIZED_EMBEDDING,
    "CachedAttention": CACHED_ATTENTION,
    "DequantizeFp8": DEQUANTIZE_FP8,
    "DequantizeNvfp4": DEQUANTIZE_NVFP4,
    **small_floats("MoEExperts", MOE_EXPERTS),
    **small_floats("QuantizedLinear", QUANTIZED_LINEAR),
    **small_floats("QuantizedEmbedding", QUANTIZED_EMBEDDING),
}
