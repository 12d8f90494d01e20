"""Faults of the graph: an operator, an attribute or an edge that is not transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, parser

from ernie_export.graph import portable
from tests.validate.fault import FP32, INT4, Fault
from tests.validate.planting import Graph, attribute, constant, graph, insert_before, replaced

# Routing


def bias_ignored(g: Graph) -> None:
    body = g.body_of("layers.3.routing.scores")
    next(node for node in body.node if "best" in node.output).input[0] = "probability"


def biased_scores(g: Graph) -> None:
    body = g.body_of("layers.3.routing.scores")
    next(node for node in body.node if "chosen" in node.output).input[0] = "choice"


def bf16_router(g: Graph) -> None:
    body = g.body_of("layers.3.routing.scores")
    product = next(node for node in body.node if "logits" in node.output)
    insert_before(
        body.node,
        product,
        [
            helper.make_node("Cast", ["hidden32"], ["hidden16"], to=TensorProto.BFLOAT16),
            helper.make_node("Cast", ["hidden16"], ["rounded"], to=TensorProto.FLOAT),
        ],
    )
    product.input[0] = "rounded"


def unnormalised(g: Graph) -> None:
    body = g.body_of("layers.3.routing.scores")
    replaced(next(node for node in body.node if "scores32" in node.output), "Identity", ["chosen"])


def no_floor(g: Graph) -> None:
    body = g.body_of("layers.3.routing.scores")
    replaced(next(node for node in body.node if "divisor" in node.output), "Identity", ["sum"])


def one_expert_fewer(g: Graph) -> None:
    body = g.body_of("layers.3.routing.scores")
    total = next(node for node in body.node if "sum" in node.output)
    three = constant("three", np.array([1, 1, 1, 0], np.float32))
    insert_before(body.node, total, [three, helper.make_node("Mul", ["chosen", "three"], ["kept"])])
    for node in body.node:
        if node.op_type in ("ReduceSum", "Div"):
            node.input[0] = "kept"


def routed_by_the_layer_before(g: Graph) -> None:
    g.maker("layers.3.experts.output").input[1] = "layers.2.routing.indices"


def high_floor(checkpoint: Path) -> None:
    """So that ordinary scores fall below it: the published floor is reached where all probabilities underflow."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"moe_norm_min": 0.9}))


# Experts, the shared expert, the sums of a layer, the norms


def another_swiglu(g: Graph) -> None:
    body = g.body_of("layers.2.experts.output")
    attribute(next(node for node in body.node if "y" in node.output), "activation_alpha", 1.702)


def shared_twice(g: Graph) -> None:
    node = g.reader("layers.2.shared.down.output", "Add")
    (total,) = node.output
    node.output[0] = "once"
    following = g.reader(total, "Add")
    g.before(following, helper.make_node("Add", ["once", "layers.2.shared.down.output"], [total]))


def shared_forgotten(g: Graph) -> None:
    replaced(g.reader("layers.4.shared.down.output", "Add"), "Identity", ["layers.4.experts.output"])


def shared_gate_for_up(g: Graph) -> None:
    sigmoid = g.reader("layers.2.shared.gate.output", "Sigmoid")
    silu = g.reader(sigmoid.output[0], "Mul")
    product = g.reader(silu.output[0], "Mul")
    for node in (sigmoid, silu):
        node.input[0] = "layers.2.shared.up.output"
    g.nodes.remove(up := g.maker("layers.2.shared.up.output"))
    copy = helper.make_node("Identity", [], [])
    copy.CopyFrom(up)
    g.before(sigmoid, copy)
    product.input[:] = [silu.output[0], "layers.2.shared.gate.output"]


def quick_gelu(g: Graph) -> None:
    sigmoid = g.reader("layers.0.mlp.gate.output", "Sigmoid")
    steeper = helper.make_node("Mul", ["layers.0.mlp.gate.output", "alpha"], ["steeper"])
    g.before(sigmoid, constant("alpha", np.array(1.702, np.float32)), steeper)
    sigmoid.input[0] = "steeper"


def no_residual(g: Graph) -> None:
    replaced(g.maker("layers.3.after_attention"), "Identity", ["layers.3.attention.o.output"])


def layer_norm(g: Graph) -> None:
    g.maker("layers.4.input_norm.output").op_type = "LayerNormalization"


def one_plus_weight(g: Graph) -> None:
    norm = g.maker("norm.output")
    g.before(
        norm,
        constant("one", np.ones(1, np.float32)),
        helper.make_node("Add", [norm.input[1], "one"], ["more"]),
    )
    norm.input[1] = "more"


def last_layer_skipped(g: Graph) -> None:
    g.maker("norm.output").input[0] = "layers.4.output"


# Attention and its cache


def half_split_rope(g: Graph) -> None:
    attribute(g.body_of("layers.3.attention.core.output").node[0], "rotary_interleaved", 0)


def sliding_window(g: Graph) -> None:
    attribute(g.body_of("layers.3.attention.core.output").node[0], "local_window_size", 64)


def key_for_value(g: Graph) -> None:
    node = g.maker("layers.3.attention.core.output")
    node.input[1], node.input[2] = node.input[2], node.input[1]


def heads_in_another_order(g: Graph) -> None:
    """Query head h reads KV head h mod 2 in place of h div 4."""
    node = g.body_of("layers.3.attention.core.output").node
    attention = node[0]

    def turned(source: str, result: str, outer: int, inner: int) -> list[Any]:
        shape = constant(f"{result}_shape", np.array([0, 0, outer, inner, 32]))
        flat = constant(f"{result}_flat", np.array([0, 0, -1]))
        return [
            shape, flat,
            helper.make_node("Reshape", [source, f"{result}_shape"], [f"{result}_5"]),
            helper.make_node("Transpose", [f"{result}_5"], [f"{result}_t"], perm=[0, 1, 3, 2, 4]),
            helper.make_node("Reshape", [f"{result}_t", f"{result}_flat"], [result]),
        ]  # fmt: skip

    insert_before(node, attention, turned("query", "turned", 4, 2))
    attention = next(each for each in node if each.op_type == "GroupQueryAttention")
    attention.input[0], attention.output[0] = "turned", "mixed"
    node.extend(turned("mixed", "output", 2, 4))


def sees_the_next_token(g: Graph) -> None:
    text = portable.BODIES["CachedAttention"].replace(
        "visible = LessOrEqual (columns, row_limits)",
        "further = Add (row_limits, n1)\n    visible = LessOrEqual (columns, further)",
    )
    body = g.body_of("layers.3.attention.core.output")
    own = parser.parse_function(f'<domain: "ernie", opset_import: ["": 23]>{text}')
    del body.node[:]
    body.node.extend(own.node)


def cache_length_one_short(g: Graph) -> None:
    """seqlens_k is the last position; here the one before."""
    cast = g.maker(g.maker("layers.0.attention.core.output").input[8])
    less = helper.make_node("Sub", [cast.input[0], "one"], ["less"])
    g.before(cast, constant("one", np.array(1, np.int64)), less)
    cast.input[0] = "less"


# Matrices, embedding and head


def zero_point(g: Graph) -> None:
    """Seven in place of eight, as the runtime's own input says it."""
    node = next(n for n in g.body_of("layers.2.shared.up.output").node if n.op_type == "MatMulNBits")
    body = next(f for f in g.model.functions if f.overload == "planted")
    insert_before(body.node, node, [constant("sevens", np.full((128, 1), 0x77, np.uint8))])
    node.input.append("sevens")


def not_transposed(g: Graph) -> None:
    g.maker("layers.2.attention.q.output").input[1] = "layers.2.attention.q.weight"


def transposed_head(g: Graph) -> None:
    head = g.maker("logits")
    turn = [
        constant("turned_shape", np.array([256, 1536])),
        helper.make_node("Reshape", ["embedding.weight", "turned_shape"], ["turned"]),
    ]
    if head.op_type == "QuantizedLinear":
        turn.append(helper.make_node("Transpose", ["turned"], ["misread"], perm=[1, 0]))
    g.before(head, *turn)
    head.input[1] = turn[-1].output[0]


def untied_head(g: Graph) -> None:
    """The head has weights of its own, as initialised."""
    head, rng = g.maker("logits"), np.random.default_rng(0)
    codes = rng.integers(0, 256, (1536, 256)).astype(np.uint8)
    floats = rng.normal(0, 0.02, (256, 1536)).astype(np.float32)
    g.before(head, constant("own_head", codes if head.op_type == "QuantizedLinear" else floats))
    head.input[1] = "own_head"


def scaled_embedding(g: Graph) -> None:
    embedding = next(n for n in g.nodes if "embedding.output" in n.output)
    embedding.output[0] = "unscaled"
    after = g.nodes[list(g.nodes).index(embedding) + 1]
    g.before(
        after,
        constant("root", np.array(16, np.float32)),
        helper.make_node("Mul", ["unscaled", "root"], ["embedding.output"]),
    )


EXACT, ROUTING, EXPERTS = "operators.exact_error", "operators.routing_error", "operators.experts_error"
ATTENTION, CORE = "operators.core_error", "layers.3.attention.core"

FAULTS = [
    Fault("correction bias ignored in the choice", ROUTING, "layers.3.routing", graph(bias_ignored)),
    Fault("correction bias added to the scores too", ROUTING, "layers.3.routing", graph(biased_scores)),
    Fault("router in bf16", ROUTING, "layers.3.routing", graph(bf16_router)),
    Fault("scores not normalised", ROUTING, "layers.3.routing", graph(unnormalised)),
    Fault(
        "normalised without the floor", ROUTING, "layers.3.routing", graph(no_floor),
        INT4, checkpoint=high_floor,
    ),
    Fault("one expert fewer a token", ROUTING, "layers.3.routing", graph(one_expert_fewer)),
    Fault("experts of the layer before", EXPERTS, "layers.3.experts", graph(routed_by_the_layer_before)),
    Fault("SwiGLU with another slope", EXPERTS, "layers.2.experts", graph(another_swiglu), INT4),
    Fault("shared expert added twice", EXACT, "layers.2.output", graph(shared_twice)),
    Fault("shared expert forgotten", EXACT, "layers.4.output", graph(shared_forgotten)),
    Fault(
        "gate and up of the shared expert swapped", "operators.shared_error", "layers.2.shared.down",
        graph(shared_gate_for_up),
    ),
    Fault("quick GELU for SiLU", "operators.dense_error", "layers.0.mlp.down", graph(quick_gelu)),
    Fault("residual forgotten", EXACT, "layers.3.after_attention", graph(no_residual)),
    Fault("LayerNorm for RMSNorm", EXACT, "layers.4.input_norm", graph(layer_norm)),
    Fault("one plus the norm's weight", EXACT, "norm.output", graph(one_plus_weight)),
    Fault(
        "epsilon 1e-6 for 1e-5", EXACT, "layers.0.input_norm",
        graph(lambda g: attribute(g.maker("layers.0.input_norm.output"), "epsilon", 1e-6)),
    ),
    Fault("last layer skipped", EXACT, "norm.output", graph(last_layer_skipped)),
    Fault("half-split RoPE", ATTENTION, CORE, graph(half_split_rope)),
    Fault(
        "softmax without its scale", ATTENTION, CORE,
        graph(lambda g: attribute(g.maker(f"{CORE}.output"), "scale", 1.0)),
    ),
    Fault("keys and values swapped", ATTENTION, CORE, graph(key_for_value)),
    Fault("query heads at the wrong KV head", ATTENTION, CORE, graph(heads_in_another_order)),
    Fault("a sliding window where there is none", ATTENTION, CORE, graph(sliding_window)),
    Fault("a token sees its follower", ATTENTION, CORE, graph(sees_the_next_token)),
    Fault("cache length one short", "error", "GroupQueryAttention", graph(cache_length_one_short)),
    Fault("zero point off by one", "operators.shared_error", "layers.2.shared.up", graph(zero_point), INT4),
    Fault("a square matrix not transposed", "operators.attention_error", "layers.2.attention.q",
          graph(not_transposed), FP32),
    Fault("transposed head", "operators.head_error", "logits", graph(transposed_head)),
    Fault("embedding untied by mistake", "operators.head_error", "logits", graph(untied_head)),
    Fault("embedding scaled by the root of its width", "operators.embedding_error", "embedding.output",
          graph(scaled_embedding)),
]  # fmt: skip
