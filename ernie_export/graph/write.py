"""The graph with the bodies of a runtime, its weights as external data: `model.onnx`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.graph import onnxruntime, onnxruntime_gpu, operators, portable, tensorrt_rtx
from ernie_export.graph.weights import WeightFile, layout
from ernie_export.names import PAST, PRESENT

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

FILE = "model.onnx"
#: The sets of bodies by name: bodies, and the opsets they import.
SETS: dict[str, tuple[Callable[[int], dict[str, str]], dict[str, int]]] = {
    "portable": (lambda _level: portable.BODIES, portable.OPSETS),
    "onnxruntime": (onnxruntime.bodies, onnxruntime.OPSETS),
    "onnxruntime_gpu": (lambda _level: onnxruntime_gpu.BODIES, onnxruntime_gpu.OPSETS),
    # TensorRT's plugins take the place of these when its engine is built (lower.py).
    "tensorrt": (lambda _level: tensorrt_rtx.bodies_of_both_phases(), tensorrt_rtx.OPSETS),
    "tensorrt_rtx": (lambda _level: tensorrt_rtx.bodies_of_both_phases(), tensorrt_rtx.OPSETS),
}
#: Those whose cache is fp16 in the graph itself.
HALF_CACHE = ("onnxruntime_gpu",)


def weight_files(model: ir.Model) -> list[WeightFile]:
    return layout(
        {
            name: (np.dtype(value.dtype.numpy()), value.shape.numpy())
            for name, value in model.graph.initializers.items()
            if value.dtype is not None and value.shape is not None
        }
    )


def assemble(model: ir.Model, files: list[WeightFile], bodies: str, accuracy_level: int) -> onnx.ModelProto:
    """Point the initializers at their files and attach the functions that the graph calls."""
    import onnx_ir as ir

    for file in files:
        for stored in file.tensors:
            value = model.graph.initializers[stored.name]
            assert value.dtype is not None
            value.const_value = ir.ExternalTensor(
                file.path, stored.offset, stored.nbytes, value.dtype,
                shape=ir.Shape(stored.shape), name=stored.name,
            )  # fmt: skip
    proto = ir.serde.serialize_model(model)
    texts, opsets = SETS[bodies]
    proto.functions.extend(functions(proto, texts(accuracy_level), opsets))
    del proto.opset_import[:]
    for domain, version in opsets.items():
        proto.opset_import.add(domain=domain, version=version)
    if bodies in HALF_CACHE:
        halve_cache(proto)
    return proto


def halve_cache(proto: onnx.ModelProto) -> None:
    """Past and present, which are fp32 as they are traced, in fp16."""
    from onnx import TensorProto

    for value in [*proto.graph.input, *proto.graph.output]:
        if value.name.startswith((PAST, PRESENT)):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16


def functions(proto: onnx.ModelProto, texts: dict[str, str], opsets: dict[str, int]) -> list[Any]:
    """The functions that the nodes of the graph call, and those that these call."""
    from onnx import parser

    imports = ", ".join(f'"{domain}": {version}' for domain, version in opsets.items())
    wanted = list(_calls(proto.graph.node))
    found: dict[tuple[str, str], Any] = {}
    while wanted:
        name, overload = key = wanted.pop(0)
        if key in found:
            continue
        text = texts[f"{name}:{overload}" if overload else name]
        function = parser.parse_function(f'<domain: "{operators.DOMAIN}", opset_import: [{imports}]>{text}')
        function.overload = overload
        found[key] = function
        wanted += _calls(function.node)
    return [found[key] for key in sorted(found)]


def _calls(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str]]:
    """Name and overload of every operator of ours among the nodes, and in the branches of an If."""
    for node in nodes:
        if node.domain == operators.DOMAIN:
            yield node.op_type, node.overload
        for attribute in node.attribute:
            yield from _calls(attribute.g.node)


def serialize(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)
