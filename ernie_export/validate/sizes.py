"""How many bytes the weights have, and what they are for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ernie_export.validate.report import Sizes


def sizes(graph: Path) -> Sizes:
    """Of an ONNX graph and its weight files, and of its weights by the part of the model.

    The part is taken from names like `layers.3.experts.gate_up`.
    """
    import onnx

    files, parts = Counter({graph.name: graph.stat().st_size}), Counter[str]()
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        stored = {entry.key: entry.value for entry in tensor.external_data}
        names = tensor.name.split(".")
        part = names[2] if names[0] == "layers" and len(names) > 2 else names[0]
        parts[part] += int(stored["length"]) if stored else tensor.ByteSize()
        if stored:
            files[stored["location"]] = (graph.parent / stored["location"]).stat().st_size
    return Sizes(files=files, parts=parts)
