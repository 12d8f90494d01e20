"""The bodies for ONNX Runtime on NVIDIA GPUs: its fused operators in fp16, the only type that all of them have there.

The CUDA provider and the TensorRT-RTX provider take the same nodes, and so does the CPU provider, in which a bundle
is validated.  They agree on one form of QMoE alone: it chooses the k largest of what it is given and weights them by
the softmax over these k.  Given log(score) for the chosen experts and almost −∞ for the others, that softmax is
score / Σ scores, and the scores of `MoERouting` sum to 1.  (The TensorRT-RTX provider drops `router_weights` without a
word, and refuses a node without biases or with `normalize_routing_weights` off.)
"""

from __future__ import annotations

from ernie_export.graph import onnxruntime, portable

OPSETS = onnxruntime.OPSETS

# QMoE's weights lie as they do for a CPU, [E, N, K·bits/8]: `weights_prepacked` 0 says so, and the CUDA provider then
# brings them into its own order when the engine opens.
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
    never = Constant <value_float: float = -65504.0> ()
    nowhere = Expand (never, dense_shape)
    scores32 = Cast <to: int = 1> (chosen_scores)
    smallest = Constant <value_float: float = 1e-30> ()
    some = Max (scores32, smallest)
    logarithms = Log (some)
    selection32 = ScatterElements <axis: int = 1> (nowhere, chosen, logarithms)
    selection = Cast <to: int = 10> (selection32)
    hidden16 = Cast <to: int = 10> (hidden)
    gate_up_rows = Shape <end: int = 2> (gate_up)
    down_rows = Shape <end: int = 2> (down)
    no_gate_up_bias32 = ConstantOfShape (gate_up_rows)
    no_down_bias32 = ConstantOfShape (down_rows)
    no_gate_up_bias = Cast <to: int = 10> (no_gate_up_bias32)
    no_down_bias = Cast <to: int = 10> (no_down_bias32)
    y16 = com.microsoft.QMoE <k: int = @k, expert_weight_bits: int = @bits, block_size: int = @block_size,
        activation_type: string = "swiglu", swiglu_fusion: int = 1, activation_alpha: float = 1.0,
        activation_beta: float = 0.0, normalize_routing_weights: int = 1, use_sparse_mixer: int = 0,
        weights_prepacked: int = 0>
        (hidden16, selection, gate_up, gate_up_scales, no_gate_up_bias, down, down_scales, no_down_bias)
    y = CastLike (y16, hidden)
}
"""

QUANTIZED_LINEAR = """
QuantizedLinear <N, K, bits, block_size> (x, weight, scales) => (y) {
    last = Constant <value_ints: ints = [-1]> ()
    blocks = Shape (scales)
    blocks_shape = Concat <axis: int = 0> (blocks, last)
    packed = Reshape (weight, blocks_shape)
    x16 = Cast <to: int = 10> (x)
    y16 = com.microsoft.MatMulNBits <N: int = @N, K: int = @K, bits: int = @bits, block_size: int = @block_size>
        (x16, packed, scales)
    y = CastLike (y16, x)
}
"""

QUANTIZED_EMBEDDING = """
QuantizedEmbedding <bits, block_size> (ids, weight, scales) => (y) {
    factors = Cast <to: int = 1> (scales)
    y = com.microsoft.GatherBlockQuantized <bits: int = @bits, block_size: int = @block_size, gather_axis: int = 0,
        quantize_axis: int = 1> (weight, ids, factors)
}
"""

# The cache has the type of the graph's inputs, which graph/write.py makes fp16 for this set.
CACHED_ATTENTION = """
CachedAttention <num_heads, kv_num_heads, scale>
    (query, key, value, past_key, past_value, cos, sin, position_ids, seqlens_k, total_sequence_length)
    => (output, present_key, present_value) {
    turned_query = RotaryEmbedding <interleaved: int = 1, num_heads: int = @num_heads> (query, cos, sin, position_ids)
    turned_key = RotaryEmbedding <interleaved: int = 1, num_heads: int = @kv_num_heads> (key, cos, sin, position_ids)
    q = Cast <to: int = 10> (turned_query)
    k = Cast <to: int = 10> (turned_key)
    v = Cast <to: int = 10> (value)
    output16, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads: int = @num_heads,
        kv_num_heads: int = @kv_num_heads, scale: float = @scale>
        (q, k, v, past_key, past_value, seqlens_k, total_sequence_length)
    output = CastLike (output16, query)
}
"""

BODIES = portable.BODIES | {
    "MoEExperts": MOE_EXPERTS,
    "QuantizedLinear": QUANTIZED_LINEAR,
    "QuantizedEmbedding": QUANTIZED_EMBEDDING,
    "CachedAttention": CACHED_ATTENTION,
}
