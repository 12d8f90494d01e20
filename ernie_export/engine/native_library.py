"""The native operators of `native/`, where they have been built and this machine and this graph suit them.

Without them ONNX Runtime runs the function bodies in the graph, copies every packed matrix into its kernels'
own order when an engine opens, and keeps the KV cache in fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_export.names import PAST, PRESENT
from ernie_export.plan.machine import CHUNK, HEAD, native_operators

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

DOMAIN, LINEAR, EXPERTS = "ernie", "QuantizedLinear", "MoEExperts"
RUNTIME = "onnxruntime-cpu"
FLOAT16 = 10
"""As ONNX numbers it."""


def prepare(model: onnx.ModelProto, runtime: str) -> Path | None:
    """The library to register before this graph is opened, whose cache then is fp16; None, and nothing changes.

    The bodies of a graph that was made for another `runtime` are what its engine is built from: they run as they are.
    """
    library = native_operators()
    if library is None or runtime != RUNTIME or not suits(model):
        return None
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith((PAST, PRESENT)):
            value.type.tensor_type.elem_type = FLOAT16
    return library


def takes_over(path: Path) -> bool:
    """Whether an engine on this graph runs them here, and its cache is fp16."""
    import onnx

    return native_operators() is not None and suits(onnx.load(path, load_external_data=False))


def suits(model: onnx.ModelProto) -> bool:
    """A library takes an operator over for all its nodes: so all must be packed, in rows of whole chunks."""
    caches = [value.type.tensor_type.shape for value in model.graph.input if value.name.startswith(PAST)]
    if any(cache.dim[-1].dim_value % HEAD for cache in caches):
        return False
    widths = {initializer.name: list(initializer.dims) for initializer in model.graph.initializer}
    found = False
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type not in (LINEAR, EXPERTS):
            continue
        found = True
        bits = next((each.i for each in node.attribute if each.name == "bits"), 0)
        if bits not in (4, 8):
            return False
        names = node.input[1:2] if node.op_type == LINEAR else (node.input[3], node.input[5])
        if any(name not in widths or widths[name][-1] * 8 // bits % CHUNK for name in names):
            return False
    return found
