"""The bodies for ONNX Runtime: its own fused operators where it has them, the portable ones elsewhere.

Routing stays apart: QMoE chooses experts itself, so the body of `MoEExperts` scatters what
`MoERouting` chose into the dense form that QMoE takes: a selection that wins its top-k, and in
`router_weights` the scores, which it uses as they are.
"""

from __future__ import annotations

from ernie_export.graph import portable

OPSETS = {**portable.OPSETS, "com.microsoft": 1}

#: MatMulNBits and QMoE on a CPU: 4 quantizes activations to 8 bits by block (several times faster), 0 does not.
SHIPPED_ACCURACY_LEVEL = 4

MOE_EXPERTS = """
MoEExperts <num_experts, k, bits, block_size>
    (hidden, indices, scores, gate_up, gate_up_scales, down, down_scales) => (y) {
    first = Constant <value_ints: ints = [0]> ()
    last = Constant <value_ints: ints = [-1]> ()
    expert_count = Constant <value_int: int = @num_experts> ()
    experts = Unsqueeze (expert_count, first)
    choices = Constant <value_int: int = @k> ()
    choices_1 = Unsqueeze (choices, first)
    chosen_shape = Concat <axis: int = 0> (last, choices_1)
    chosen = Reshape (indices, chosen_shape)
    chosen_scores = Reshape (scores, chosen_shape)
    token_count = Shape <end: int = 1> (chosen)
    dense_shape = Concat <axis: int = 0> (token_count, experts)
    nothing32 = ConstantOfShape (dense_shape)
    nothing = CastLike (nothing32, hidden)
    one32 = Constant <value_float: float = 1.0> ()
    one = CastLike (one32, hidden)
    chosen_count = Shape (chosen)
    ones = Expand (one, chosen_count)
    selection = ScatterElements <axis: int = 1> (nothing, chosen, ones)
    weights = ScatterElements <axis: int = 1> (nothing, chosen, chosen_scores)
    gate_up_factors = CastLike (gate_up_scales, hidden)
    down_factors = CastLike (down_scales, hidden)
    y = com.microsoft.QMoE <k: int = @k, expert_weight_bits: int = @bits, block_size: int = @block_size,
        activation_type: string = "swiglu", swiglu_fusion: int = 1, activation_alpha: float = 1.0,
        activation_beta: float = 0.0, normalize_routing_weights: int = 0, accuracy_level: int = ACCURACY_LEVEL>
        (hidden, selection, gate_up, gate_up_factors, , down, down_factors, , , , , , , , weights)
}
"""

# MatMulNBits wants its rows in blocks: the same bytes, seen as [N, K / block, block · bits / 8].
QUANTIZED_LINEAR = """
QuantizedLinear <N, K, bits, block_size> (x, weight, scales) => (y) {
    last = Constant <value_ints: ints = [-1]> ()
    blocks = Shape (scales)
    blocks_shape = Concat <axis: int = 0> (blocks, last)
    packed = Reshape (weight, blocks_shape)
    factors = CastLike (scales, x)
    y = com.microsoft.MatMulNBits <N: int = @N, K: int = @K, bits: int = @bits, block_size: int = @block_size,
        accuracy_level: int = ACCURACY_LEVEL> (x, packed, factors)
}
"""

CACHED_ATTENTION = """
CachedAttention <num_heads, kv_num_heads, scale>
    (query, key, value, past_key, past_value, cos, sin, position_ids, seqlens_k, total_sequence_length)
    => (output, present_key, present_value) {
    output, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads: int = @num_heads,
        kv_num_heads: int = @kv_num_heads, scale: float = @scale, do_rotary: int = 1, rotary_interleaved: int = 1>
        (query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos, sin)
}
"""


def bodies(accuracy_level: int = SHIPPED_ACCURACY_LEVEL) -> dict[str, str]:
    own = {
        "MoEExperts": MOE_EXPERTS,
        "QuantizedLinear": QUANTIZED_LINEAR,
        "CachedAttention": CACHED_ATTENTION,
    }
    level = str(accuracy_level)
    return portable.BODIES | {name: text.replace("ACCURACY_LEVEL", level) for name, text in own.items()}
