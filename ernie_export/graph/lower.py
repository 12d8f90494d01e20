"""The bundle's graph as TensorRT takes it: functions inlined, nodes named apart, weights and cache as inputs.

Weights are inputs, bound by the runtime from the mapped weight files: so an engine holds the graph alone, it is
built without reading a weight, and it serves every checkpoint of that shape and recipe.  TensorRT's UINT8 is for
the edge of a network only, so packed bytes are declared as INT8 for RTX, and for TensorRT as words of INT32.

What the routers choose is an output too: it is written to memory anyway, and so the engine that ships can show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ernie_export.errors import UserError
from ernie_export.graph import operators, tensorrt, tensorrt_rtx, write
from ernie_export.names import PAST, PRESENT

if TYPE_CHECKING:
    import onnx

    from ernie_export.graph.tensorrt_rtx import Phase

#: int64 [kept], an input of prefill: the places of the tokens whose logits are wanted.
KEPT = "kept"
#: P where it is free.
CACHE = "cache"


@dataclass(frozen=True)
class Lowered:
    """What an engine is built for."""

    phase: Phase
    cache_length: int
    """Tokens a row of the cache at most: P of every past and present [batch,KV,P,D]. RTX takes no other; with
    plugins P is free, so that a session has what it asks for."""
    batch: int = 1
    """Rows at most; a prompt is read row by row, so prefill has one."""
    plugins: bool = False
    """For TensorRT with our plugins; else for TensorRT for RTX, which takes none."""


def lower(model: onnx.ModelProto, form: Lowered) -> onnx.ModelProto:
    """The bundle's graph for one phase.  `model` is left as it is.

    Inputs: input_ids and position_ids [batch,S] (S: 1 in decode), attention_mask [batch,P], past_key_values.*
    fp16 [batch,KV,P,D], in prefill kept [kept], and every weight under its own name; outputs logits
    [batch,S or kept,V], present.* fp16, and of every router indices int64 and scores fp32 [batch,S,k].

    Raises:
        UserError: a weight has a format that the plugins do not read.
    """
    import onnx
    from onnx import inliner

    phased = onnx.ModelProto()
    phased.CopyFrom(model)
    del phased.functions[:]
    show_routers(phased)
    if form.phase == "prefill":
        keep_logits(phased)
    if form.plugins:
        require_readable(phased)
        give_norms_a_body(phased)
    of_runtime = tensorrt if form.plugins else tensorrt_rtx
    declare(phased, of_runtime.OPSETS)
    phased.functions.extend(write.functions(phased, of_runtime.bodies(form.phase), of_runtime.OPSETS))
    lowered = inliner.inline_local_functions(phased)
    del lowered.graph.value_info[:]
    weights_become_inputs(lowered, words=form.plugins)
    fix_sizes(lowered, form)
    folded = fold_constants(lowered)
    if form.plugins:
        settle_plugins(folded)
    name_apart(folded)
    return folded


def show_routers(model: onnx.ModelProto) -> None:
    typed = {value.name: value for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "MoERouting":
            for name in node.output:
                rows, tokens, _ = typed[name].type.tensor_type.shape.dim
                rows.dim_param, tokens.dim_param = "batch", "sequence"
                model.graph.output.append(typed[name])


def keep_logits(model: onnx.ModelProto) -> None:
    """The head reads the states of the wanted tokens alone: all logits of a prompt are larger than its cache."""
    from onnx import TensorProto, helper

    nodes = model.graph.node
    at, head = next((at, node) for at, node in enumerate(nodes) if "logits" in node.output)
    state, head.input[0] = head.input[0], "kept_states"
    nodes.insert(at, helper.make_node("Gather", [state, KEPT], ["kept_states"], axis=1))
    model.graph.input.append(helper.make_tensor_value_info(KEPT, TensorProto.INT64, [KEPT]))
    for value in model.graph.output:
        if value.name == "logits":
            value.type.tensor_type.shape.dim[1].dim_param = KEPT


def require_readable(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.domain == operators.DOMAIN and node.op_type in ("QuantizedLinear", "MoEExperts"):
            bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
            if bits and bits not in tensorrt.BITS:
                raise UserError(
                    f"The plugins for TensorRT read no weights of {bits} bits ({node.input[-1]})",
                    f"Use a recipe with {' or '.join(map(str, tensorrt.BITS))} bits, or fp16.",
                )


def give_norms_a_body(model: onnx.ModelProto) -> None:
    """TensorRT's parser knows RMSNormalization from 10.15 on."""
    for node in model.graph.node:
        if node.op_type == "RMSNormalization":
            node.domain = operators.DOMAIN


def settle_plugins(model: onnx.ModelProto) -> None:
    """Plugins next to each other pass fp16 on as it is; and no parser is told of more than it must know."""
    from onnx import TensorProto

    nodes = model.graph.node
    halves = {name for node in nodes if node.domain == tensorrt.PLUGINS for name in node.output}
    same = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16 and node.input[0] in halves
    }
    for node in list(nodes):
        if node.output[0] in same:
            nodes.remove(node)
        for at, name in enumerate(node.input):
            node.input[at] = same.get(name, name)
        if node.domain == tensorrt.PLUGINS:
            node.domain = operators.DOMAIN
    declare(model, {"": tensorrt.OPSET, operators.DOMAIN: operators.VERSION})


def declare(model: onnx.ModelProto, opsets: dict[str, int]) -> None:
    del model.opset_import[:]
    for domain, version in opsets.items():
        model.opset_import.add(domain=domain, version=version)


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


def weights_become_inputs(model: onnx.ModelProto, words: bool = False) -> None:
    """Packed bytes as INT8, or as INT32 words of four."""
    from onnx import TensorProto, helper

    graph = model.graph
    for weight in graph.initializer:
        dtype, shape = weight.data_type, list(weight.dims)
        if dtype == TensorProto.UINT8:
            dtype = TensorProto.INT32 if words else TensorProto.INT8
            shape[-1] //= 4 if words else 1
        graph.input.append(helper.make_tensor_value_info(weight.name, dtype, shape))
    del graph.initializer[:]


def fix_sizes(model: onnx.ModelProto, form: Lowered) -> None:
    from onnx import TensorProto

    for value in [*model.graph.input, *model.graph.output]:
        tensor, length = value.type.tensor_type, None
        if value.name.startswith((PAST, PRESENT)):
            tensor.elem_type = TensorProto.FLOAT16
            length = tensor.shape.dim[2]
        elif value.name == "attention_mask":
            length = tensor.shape.dim[1]
        elif value.name in ("input_ids", "position_ids", "logits") or ".routing." in value.name:
            if form.phase == "decode":
                fix(tensor.shape.dim[1], 1)
        else:  # a weight
            continue
        if length and form.plugins:
            length.dim_param = CACHE
        elif length:
            fix(length, form.cache_length)
        if form.batch == 1:
            fix(tensor.shape.dim[0], 1)


def fix(dimension: Any, size: int) -> None:
    dimension.ClearField("dim_param")
    dimension.dim_value = size
