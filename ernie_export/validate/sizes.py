"""How many bytes the weights have, and what they are for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ernie_export.graph.weights import place_of, read_initializers
from ernie_export.validate.report import Sizes


def sizes(graph: Path) -> Sizes:
    """Of an ONNX graph and its weight files, and of its weights by the part of the model."""
    files, parts = Counter({graph.name: graph.stat().st_size}), Counter[str]()
    for tensor in read_initializers(graph):
        if not tensor.external_data:
            parts[part_of(tensor.name)] += tensor.ByteSize()
            continue
        path, stored = place_of(tensor, graph)
        parts[part_of(tensor.name)] += stored.nbytes
        files[path] = (graph.parent / path).stat().st_size
    return Sizes(files=files, parts=parts)


def part_of(initializer: str) -> str:
    """`experts` of `layers.3.experts.gate_up`, `head` of `head.weight`."""
    names = initializer.split(".")
    return names[2] if names[0] == "layers" and len(names) > 2 else names[0]
