"""The bundle's graph as TensorRT takes it: functions inlined, nodes named apart, weights and cache as inputs.

Weights are inputs, bound by the runtime from the mapped weight files: so an engine holds the graph alone, it is
built without reading a weight, and it serves every checkpoint of that shape and recipe.  Packed bytes are
declared as INT8, since TensorRT's UINT8 is for the edge of a network only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ernie_export.graph import tensorrt_rtx, write

if TYPE_CHECKING:
    import onnx

    from ernie_export.graph.tensorrt_rtx import Phase

PAST, PRESENT = "past_key_values.", "present."


@dataclass(frozen=True)
class Lowered:
    """What an engine is built for: fixed sizes, so that a decode step can be captured and launched again."""

    phase: Phase
    cache_length: int
    """Tokens a row of the cache: P of every past and present [batch,KV,P,D]."""
    batch: int = 1
    """Rows at most; a prompt is read row by row, so prefill has one."""


def lower(model: onnx.ModelProto, form: Lowered) -> onnx.ModelProto:
    """The bundle's graph for one phase.  `model` is left as it is.

    Inputs: input_ids and position_ids [batch,S] (S: 1 in decode), attention_mask [batch,P], past_key_values.*
    fp16 [batch,KV,P,D], and every weight under its own name; outputs logits [batch,S,V] and present.* fp16.
    """
    import onnx
    from onnx import inliner

    phased = onnx.ModelProto()
    phased.CopyFrom(model)
    del phased.functions[:]
    texts = tensorrt_rtx.bodies(form.phase)
    phased.functions.extend(write.functions(phased, texts, tensorrt_rtx.OPSETS))
    lowered = inliner.inline_local_functions(phased)
    del lowered.graph.value_info[:]
    weights_become_inputs(lowered)
    fix_sizes(lowered, form)
    folded = fold_constants(lowered)
    name_apart(folded)
    return folded


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """What a body computes of its attributes alone is computed here: half the nodes to parse and compile."""
    import onnx_ir as ir
    from onnxscript import optimizer

    graph = ir.serde.deserialize_model(model)
    optimizer.optimize(graph)
    return ir.serde.serialize_model(graph)


def name_apart(model: onnx.ModelProto) -> None:
    """TensorRT knows nodes by their names; the inliner leaves those of a function's body alike."""
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"


def weights_become_inputs(model: onnx.ModelProto) -> None:
    from onnx import TensorProto, helper

    graph = model.graph
    for weight in graph.initializer:
        dtype = TensorProto.INT8 if weight.data_type == TensorProto.UINT8 else weight.data_type
        graph.input.append(helper.make_tensor_value_info(weight.name, dtype, weight.dims))
    del graph.initializer[:]


def fix_sizes(model: onnx.ModelProto, form: Lowered) -> None:
    from onnx import TensorProto

    for value in [*model.graph.input, *model.graph.output]:
        tensor = value.type.tensor_type
        if value.name.startswith((PAST, PRESENT)):
            tensor.elem_type = TensorProto.FLOAT16
            fix(tensor.shape.dim[2], form.cache_length)
        elif value.name == "attention_mask":
            fix(tensor.shape.dim[1], form.cache_length)
        elif value.name in ("input_ids", "position_ids", "logits"):
            if form.phase == "decode":
                fix(tensor.shape.dim[1], 1)
        else:  # a weight
            continue
        if form.batch == 1:
            fix(tensor.shape.dim[0], 1)


def fix(dimension: Any, size: int) -> None:
    dimension.ClearField("dim_param")
    dimension.dim_value = size
