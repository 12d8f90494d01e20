"""The main graph, traced with no weights in memory: the same nodes for every runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ernie_export.graph import operators

if TYPE_CHECKING:
    import onnx_ir as ir

    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.recipe import Parts

OPSET = 23


def trace(config: ErnieConfig, parts: Parts, context: int) -> ir.Model:
    """The graph of `model.ernie.Ernie`; its initializers have names, shapes and dtypes, and no bytes.

    Inputs `input_ids` [batch, sequence], `attention_mask` [batch, total], `position_ids`
    [batch, sequence], `past_key_values.N.key/value` [batch, kv, past, D]; outputs `logits`
    [batch, sequence, V], `present.N.key/value` [batch, kv, present, D].
    """
    import torch

    from ernie_export.model.ernie import Ernie

    layers = config.num_hidden_layers
    model = Ernie(config, parts, context)

    def integers(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device="meta")

    def cache() -> torch.Tensor:
        return torch.empty(2, config.num_key_value_heads, 16, config.head_dim, device="meta")

    free = torch.export.Dim.DYNAMIC
    two, cached = {0: free, 1: free}, ({0: free, 2: free}, {0: free, 2: free})
    example = (integers(2, 3), integers(2, 7), integers(2, 3), [(cache(), cache()) for _ in range(layers)])
    with quiet():
        program = torch.export.export(model, example, dynamic_shapes=(two, two, two, [cached] * layers))
        exported = torch.onnx.export(
            program, dynamo=True, optimize=False, opset_version=OPSET,
            custom_translation_table=operators.translations(),
        )  # fmt: skip
    assert exported is not None
    traced = exported.model
    name_interface(traced, layers)
    name_operators(traced)
    mark_overloads(traced)
    forget_origin(traced)
    return traced


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch tells of every step on stdout and by warnings; none of it is for our user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def name_interface(model: ir.Model, layers: int) -> None:
    """Give inputs, outputs and free dimensions the names that runtimes look for."""
    import onnx_ir as ir

    def name(value: ir.Value, title: str, dims: dict[int, str]) -> None:
        value.name = title
        assert value.shape is not None
        value.shape = ir.Shape([dims.get(axis, size) for axis, size in enumerate(value.shape)])

    ids, mask, positions, *past = model.graph.inputs
    logits, *present = model.graph.outputs
    name(ids, "input_ids", {0: "batch", 1: "sequence"})
    name(mask, "attention_mask", {0: "batch", 1: "total"})
    name(positions, "position_ids", {0: "batch", 1: "sequence"})
    name(logits, "logits", {0: "batch", 1: "sequence"})
    titles = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    for value, title in zip(past, titles, strict=True):
        name(value, f"past_key_values.{title}", {0: "batch", 2: "past"})
    for value, title in zip(present, titles, strict=True):
        name(value, f"present.{title}", {0: "batch", 2: "present"})


def name_operators(model: ir.Model) -> None:
    """Name every operator's output after the module whose weight it uses: `layers.3.attention.q.output`.

    Validation reads these values, and can give them: each operator can so be fed with what the
    reference fed it.  Beside them: `layers.i.routing.indices` and `.scores`,
    `layers.i.attention.core.output` (before the output projection), `layers.i.after_attention` (the
    residual state) and `layers.i.output`.
    """
    for weight in model.graph.initializers.values():
        assert weight.name is not None
        module, _, kind = weight.name.rpartition(".")
        if kind not in ("weight", "gate_up"):
            continue
        node = user(weight)
        state = node.inputs[0]
        assert state is not None
        if node.op_type == "MoERouting":
            for value, what in zip(node.outputs, ("indices", "scores"), strict=True):
                value.name = f"{module.removesuffix('router')}routing.{what}"
            continue
        if module not in ("embedding", "head"):
            node.outputs[0].name = f"{module}.output"
        if module.endswith(".attention.q"):
            (attention,) = (use.node for use in node.outputs[0].uses())
            attention.outputs[0].name = f"{module.removesuffix('.q')}.core.output"
        if module.endswith(".post_attention_norm"):
            state.name = f"{module.removesuffix('.post_attention_norm')}.after_attention"
        if module.endswith(".input_norm"):
            layer = int(module.split(".")[1])
            state.name = f"layers.{layer - 1}.output" if layer else "embedding.output"
        if module == "norm":
            layers = len(model.graph.inputs[3:]) // 2
            state.name = f"layers.{layers - 1}.output"


def user(weight: ir.Value) -> ir.Node:
    """The operator that uses a weight, behind the Cast and the Transpose of a float one."""
    node = next(iter(weight.uses())).node
    while node.op_type in ("Cast", "Transpose") and weight.name != "embedding.weight":
        node = next(iter(node.outputs[0].uses())).node
    return node


def mark_overloads(model: ir.Model) -> None:
    """Of the formats that have bodies of their own: fp8 has E4M3 codes, nvfp4 E4M3 scales."""
    import onnx_ir as ir

    for node in model.graph:
        if node.op_type == "MoEExperts" and node.attributes["bits"].as_int() == 0:
            node.overload = operators.FLOAT
        elif node.domain == operators.DOMAIN:
            eights = [
                value.name or ""
                for value in node.inputs
                if value is not None and value.dtype == ir.DataType.FLOAT8E4M3FN
            ]
            if eights:
                scales = all(name.endswith("scales") for name in eights)
                node.overload = operators.NVFP4 if scales else operators.FP8


def forget_origin(model: ir.Model) -> None:
    """Drop what torch notes of files and lines here: the same model must give the same bytes anywhere."""
    holders: list[Any] = [
        model,
        model.graph,
        *model.graph,
        *model.graph.inputs,
        *model.graph.initializers.values(),
    ]
    for node in model.graph:
        holders += node.outputs
    for holder in holders:
        holder.metadata_props.clear()
        holder.doc_string = None
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    model.producer_name, model.producer_version = "ernie-export", ""
    model.graph.name = "ernie"
