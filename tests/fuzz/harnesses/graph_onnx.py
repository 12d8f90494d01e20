"""model.onnx: which weights lie where, and their bytes out of the files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import TensorProto, helper

from ernie_export.graph.weights import read_layout

JSON = False
TOKENS = (
    b"location",
    b"offset",
    b"length",
    b"weights/layer-00.bin",
    b"../",
    b"4096",
    b"-1",
    b"layers.0.norm.weight",
)


def seeds() -> Iterator[bytes]:
    tensors = [
        _stored("embedding.weight", TensorProto.UINT8, [4, 8], "weights/embedding.bin", 0),
        _stored("embedding.scales", TensorProto.FLOAT16, [4, 1], "weights/embedding.bin", 64),
        _stored("layers.0.input_norm.weight", TensorProto.FLOAT, [8], "weights/layer-00.bin", 128),
    ]
    yield helper.make_model(helper.make_graph([], "engine", [], [], tensors)).SerializeToString()
    yield helper.make_model(helper.make_graph([], "engine", [], [], tensors[:1])).SerializeToString()


def _stored(name: str, kind: int, shape: list[int], location: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def parse(data: bytes, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(data)
    files = read_layout(folder / "model.onnx")
    assert files
    root = folder.resolve()
    for file in files:
        assert (folder / file.path).resolve().is_relative_to(root) and (folder / file.path) != folder
        assert file.size >= 0
        for stored in file.tensors:
            assert stored.offset >= 0 and all(size >= 0 for size in stored.shape)
