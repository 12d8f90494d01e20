"""A bundle's graph as an engine opens it: for what is asked of it, and no more; weights stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_export.errors import WorkError

if TYPE_CHECKING:
    import onnx

#: The name of a graph input that stands in for an inner value begins with this.
GIVEN = "given."
#: int64 [1]: of how many tokens, counted from the end of the sequence, logits are made; 0 for all of them.
LOGITS_TO_KEEP = "logits_to_keep"
INT64_MAX = 2**63 - 1


def opened_graph(graph: Path, probes: Sequence[str] = (), given: Sequence[str] = ()) -> onnx.ModelProto:
    """The graph with the input `logits_to_keep`, some inner values as outputs, others as inputs too.

    Raises:
        WorkError: the graph cannot be read, or lacks one of these values.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(graph, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise WorkError(
            f"{graph} cannot be read ({getattr(error, 'strerror', None) or 'it is no ONNX graph'})",
            "Check the bundle with `ernie-export verify`, and fetch or build it again.",
        ) from error
    show(model, graph, probes, given)
    keep_last_logits(model, graph)
    return model


def show(model: onnx.ModelProto, graph: Path, probes: Sequence[str], given: Sequence[str]) -> None:
    import onnx

    typed = {value.name: value for value in [*model.graph.value_info, *model.graph.output]}
    made = {output for node in model.graph.node for output in node.output}
    missing = [name for name in (*probes, *given) if name not in made or name not in typed]
    if missing:
        raise WorkError(
            f"{graph} has no value named {missing[0]}", "Build the bundle again with this version."
        )
    for name in given:
        value = model.graph.input.add()
        value.CopyFrom(typed[name])
        value.name = GIVEN + name
    instead = set(given)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in instead:
                node.input[place] = GIVEN + name
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in probes if name not in outputs)


def keep_last_logits(model: onnx.ModelProto, graph: Path) -> None:
    """Give the head the last tokens alone: the logits of a long prompt are larger than its whole cache."""
    from onnx import TensorProto, helper

    nodes = model.graph.node
    at, head = next(
        ((at, node) for at, node in enumerate(nodes) if "logits" in node.output and node.input), (0, None)
    )
    if head is None:
        raise WorkError(f"{graph} has no value named logits", "Build the bundle again with this version.")
    state, kept = head.input[0], "kept_states"
    head.input[0] = kept
    model.graph.input.append(helper.make_tensor_value_info(LOGITS_TO_KEEP, TensorProto.INT64, [1]))
    ends = helper.make_node("Constant", [], [f"{kept}.end"], value_ints=[INT64_MAX])
    axes = helper.make_node("Constant", [], [f"{kept}.axis"], value_ints=[1])
    starts = helper.make_node("Neg", [LOGITS_TO_KEEP], [f"{kept}.start"])
    slices = helper.make_node("Slice", [state, f"{kept}.start", f"{kept}.end", f"{kept}.axis"], [kept])
    for node in (slices, starts, axes, ends):
        nodes.insert(at, node)
    for value in model.graph.output:
        if value.name == "logits":
            value.type.tensor_type.shape.dim[1].dim_param = "kept"
