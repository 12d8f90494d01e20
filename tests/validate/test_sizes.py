from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ernie_export.validate.sizes import sizes


def test_external_weights_count_by_part_and_file(tmp_path: Path) -> None:
    shapes = {
        "layers.0.mlp.gate.weight": 100,
        "layers.1.experts.gate_up": 300,
        "layers.12.experts.down": 200,
        "embedding.weight": 50,
    }
    tensors = [numpy_helper.from_array(np.zeros(n, np.uint8), name) for name, n in shapes.items()]
    tensors.append(numpy_helper.from_array(np.zeros(0, np.float32), "empty"))
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1)
    found = sizes(path)
    parts = dict(found.parts)
    assert parts.pop("empty") < 32
    assert parts == {"mlp": 100, "experts": 500, "embedding": 50}
    assert found.files == {file.name: file.stat().st_size for file in tmp_path.iterdir()}
