"""How a fault is planted: into the stored weights, the graph, the checkpoint, or how the engine is driven."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ernie_export import pipeline
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.onnxruntime import OnnxRuntimeEngine, OnnxRuntimeSession
from ernie_export.graph.weights import read_layout
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.target import Target

Array = np.ndarray[Any, Any]
Plant = Callable[[Path], None]


def mapped(folder: Path, name: str) -> np.memmap[Any, Any]:
    """One stored tensor, for writing."""
    for file in read_layout(folder / pipeline.GRAPH):
        for part in file.tensors:
            if part.name == name:
                return np.memmap(folder / file.path, part.dtype, "r+", part.offset, part.shape)
    raise KeyError(name)


def stored(name: str, change: Callable[[Array], Array]) -> Plant:
    def plant(folder: Path) -> None:
        values = mapped(folder, name)
        before = np.array(values)
        values[...] = change(before.copy())
        assert values.tobytes() != before.tobytes()
        values.flush()

    return plant


class Graph:
    """The nodes of a bundle's graph, found by what they make."""

    def __init__(self, model: onnx.ModelProto):
        self.model = model
        self.nodes = model.graph.node

    def maker(self, output: str) -> NodeProto:
        return next(node for node in self.nodes if output in node.output)

    def reader(self, value: str, kind: str) -> NodeProto:
        return next(node for node in self.nodes if value in node.input and node.op_type == kind)

    def before(self, node: NodeProto, *added: NodeProto) -> None:
        insert_before(self.nodes, node, added)

    def body_of(self, output: str) -> onnx.FunctionProto:
        """A body of its own for the operator that makes `output`, so that no other is changed with it."""
        node = self.maker(output)
        shared = next(
            f for f in self.model.functions if (f.name, f.overload) == (node.op_type, node.overload)
        )
        own = self.model.functions.add()
        own.CopyFrom(shared)
        own.overload = node.overload = "planted"
        return own


def graph(change: Callable[[Graph], None]) -> Plant:
    def plant(folder: Path) -> None:
        path = folder / pipeline.GRAPH
        model = onnx.load(path, load_external_data=False)
        before = model.SerializeToString(deterministic=True)
        change(Graph(model))
        after = model.SerializeToString(deterministic=True)
        assert after != before
        path.write_bytes(after)

    return plant


def insert_before(nodes: Any, node: NodeProto, added: Iterable[NodeProto]) -> None:
    at = list(nodes).index(node)
    for place, new in enumerate(added):
        nodes.insert(at + place, new)


def attribute(node: NodeProto, name: str, value: float | int) -> None:
    for known in [known for known in node.attribute if known.name == name]:
        node.attribute.remove(known)
    node.attribute.append(helper.make_attribute(name, value))


def constant(name: str, value: Array) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def replaced(node: NodeProto, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
    node.CopyFrom(helper.make_node(kind, inputs, list(node.output), **attributes))


def driven(session: type[OnnxRuntimeSession]) -> Callable[[Path, Sequence[str], Sequence[str]], Any]:
    """Opens the real engine, its sessions driven by another class."""

    class Engine(OnnxRuntimeEngine):
        def start(self, batch: int = 1, max_length: int | None = None) -> OnnxRuntimeSession:
            return session(self, batch, max_length or self.info.max_context)

    return lambda folder, probes, given: Engine(folder, EngineInfo.read(folder), probes, given)


def tensor(checkpoint: Path, name: str, change: Callable[[Array], Array]) -> None:
    """Change one tensor of a checkpoint in place, computed in fp32."""
    info = Checkpoint.open(checkpoint).tensors[name]
    dtype = Checkpoint.open(checkpoint).array(name).dtype
    values = np.memmap(info.path, dtype, "r+", info.offset, info.shape)
    values[...] = change(values.astype(np.float32)).astype(dtype)
    values.flush()


def assembled(checkpoint: Path, recipe: Recipe, partial: Path) -> Path:
    """The files of a bundle in a folder below `partial`, not validated."""
    partial.mkdir()
    work = pipeline.Work(partial, Silent())
    source, target = Checkpoint.open(checkpoint), Target.find("cpu")
    recipe = recipe.model_copy(update={"context": pipeline.context_of(source, recipe)})
    (work.folder / pipeline.GRAPH).write_bytes(
        traced(checkpoint, recipe, partial.with_name(f"{partial.name}-traced"))
    )
    pipeline.make_weights(work, source, recipe, pipeline.calibration_text(source, recipe, None))
    pipeline.write_texts(work, source, recipe, target)
    return work.folder


GRAPHS: dict[tuple[str, str], bytes] = {}
"""By recipe and config.json, on which alone a graph depends: tracing is most of the work."""


def traced(checkpoint: Path, recipe: Recipe, partial: Path) -> bytes:
    key = recipe.to_toml(), (checkpoint / "config.json").read_text()
    if key not in GRAPHS:
        partial.mkdir()
        work = pipeline.Work(partial, Silent())
        pipeline.write_graph(work, Checkpoint.open(checkpoint), recipe, Target.find("cpu"))
        GRAPHS[key] = (work.folder / pipeline.GRAPH).read_bytes()
    return GRAPHS[key]
