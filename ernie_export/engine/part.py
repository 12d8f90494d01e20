"""A part of a bundle's graph as an engine of its own: what lies between two values, with its weights alone.

The real graph is cut: its nodes, its functions, its weight files.  What a part begins with is given to
`feed` beside the tokens, as the values of an engine that was opened to be given some are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.engine.info import EngineInfo
from ernie_export.engine.interface import Fed
from ernie_export.engine.native_library import prepare
from ernie_export.engine.onnxruntime import Cache, first_line, opened
from ernie_export.engine.opened_graph import GIVEN, LOGITS_TO_KEEP, opened_graph
from ernie_export.errors import WorkError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Array = NDArray[Any]


class GraphPart:
    """An Engine of ONNX Runtime on the CPU. Its logits are [tokens, 0] unless it was asked to show them."""

    def __init__(self, folder: Path, probes: Sequence[str], given: Sequence[str], threads: int | None = None):
        """
        Args:
            probes: what it computes and shows; nothing that these do not need is opened.
            given: what it is given, by the names of values of the graph.

        Raises:
            UserError: the folder is no bundle.
            WorkError: the graph has no such values, or the runtime refuses it.
        """
        self.info = EngineInfo.read(folder)
        self.probes, self.given = tuple(probes), tuple(given)
        path = folder / self.info.graph
        graph = opened_graph(path, probes, given)
        library = prepare(graph, self.info.runtime)  # as the whole engine has it
        cut(graph, probes)
        self.session = opened(graph.SerializeToString(), path, library, threads)
        self.inputs = [value.name for value in self.session.get_inputs()]

    def start(self, batch: int = 1, max_length: int | None = None) -> PartSession:
        return PartSession(self, batch, max_length or self.info.max_context)


class PartSession:
    """As the session of a whole engine: the buffers of the cache are past and present at once."""

    def __init__(self, part: GraphPart, batch: int, max_length: int):
        info = part.info
        self.lengths = [0] * batch
        self._part = part
        shape = (batch, info.num_key_value_heads, max_length, info.head_dim)
        self._cache = Cache(part.session, shape)

    def truncate(self, row: int, length: int) -> None:
        self.lengths[row] = min(self.lengths[row], length)

    def feed(
        self,
        rows: Sequence[Sequence[int]],
        all_logits: bool = False,
        given: Sequence[Mapping[str, Array]] = (),
    ) -> Fed:
        """As that of every session; rows of one token each run together, others one by one."""
        fed = Fed([np.empty((0, 0), np.float32)] * len(rows), [{} for _ in rows])
        given = given or [{}] * len(rows)
        together = all(len(row) == 1 for row in rows)
        for span in [range(len(rows))] if together else [range(at, at + 1) for at in range(len(rows))]:
            if rows[span.start]:
                values = [given[row] for row in span]
                shown = self._run(span, [list(rows[row]) for row in span], values, all_logits)
                for at, row in enumerate(span):
                    fed.probes[row] = {name: value[at] for name, value in shown.items()}
                    fed.logits[row] = fed.probes[row].pop("logits", np.empty((len(rows[row]), 0), np.float32))
        return fed

    def _run(
        self, span: range, rows: list[list[int]], given: Sequence[Mapping[str, Array]], all_logits: bool
    ) -> dict[str, Array]:
        """The slots `span` of the batch on `rows`, equally long: what is shown, [rows, tokens, …]."""
        new = len(rows[0])
        for row in span:
            self.lengths[row] += new
        lengths = np.array([self.lengths[row] for row in span])
        total = int(lengths.max())
        inputs: dict[str, Array] = {
            "input_ids": np.array(rows, np.int64),
            "attention_mask": (np.arange(total) < lengths[:, None]).astype(np.int64),
            "position_ids": (lengths[:, None] - new + np.arange(new)).astype(np.int64),
            LOGITS_TO_KEEP: np.array([0 if all_logits else 1]),
        }
        for name in self._part.given:
            inputs[GIVEN + name] = np.stack([values[name] for values in given])
        binding = self._part.session.io_binding()
        for name in self._part.inputs:
            if name in inputs:
                binding.bind_cpu_input(name, inputs[name])
        for name in self._part.probes:
            binding.bind_output(name, "cpu")
        self._cache.bind(binding, span)
        try:
            self._part.session.run_with_iobinding(binding)
        except Exception as error:  # the runtime's errors share no base class but this
            raise WorkError(
                f"ONNX Runtime fails on a part of this graph: {first_line(error)}",
                "Check the bundle with `ernie-export verify`, and the memory that is left.",
            ) from error
        shown = binding.get_outputs()[: len(self._part.probes)]  # in the order of binding
        return {name: value.numpy() for name, value in zip(self._part.probes, shown, strict=True)}


def cut(model: onnx.ModelProto, wanted: Sequence[str]) -> None:
    """Leave out what `wanted` does not need; the attentions that are left keep their caches."""
    graph = model.graph
    nodes = _needed(graph.node, wanted)
    read = {name for node in nodes for name in node.input}
    made = {name for node in nodes for name in node.output}
    kept: dict[str, list[Any]] = {
        "node": nodes,
        "input": [value for value in graph.input if value.name in read],
        "output": [
            value
            for value in graph.output
            if value.name in wanted or (value.name.startswith("present.") and value.name in made)
        ],
        "initializer": [tensor for tensor in graph.initializer if tensor.name in read],
        "value_info": [value for value in graph.value_info if value.name in made],
    }
    for field, values in kept.items():
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def _needed(nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes from which `wanted` follows, in their order; nodes are sorted from inputs to outputs."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    return kept[::-1]
