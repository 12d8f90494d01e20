"""engine.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ernie_export.engine.info import EngineInfo

JSON = True
TOKENS = (b'"runtime":', b'"onnxruntime-cpu"', b'"graph":"model.onnx"', b"moe_layers", b"2147483648")
INFO = {
    "runtime": "onnxruntime-cpu", "graph": "model.onnx", "num_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96, "max_context": 64, "moe_layers": [1, 2],
    "num_experts": 4, "experts_per_token": 2,
}  # fmt: skip


def seeds() -> Iterator[bytes]:
    yield json.dumps(INFO).encode()
    yield json.dumps(INFO | {"moe_layers": [], "num_experts": 0, "experts_per_token": 0}).encode()


def parse(data: bytes, folder: Path) -> None:
    (folder / EngineInfo.FILE).write_bytes(data)
    info = EngineInfo.read(folder)
    assert (folder / info.graph).resolve().parent == folder.resolve()
    assert info.num_attention_heads % info.num_key_value_heads == 0
    assert all(0 <= layer < info.num_layers for layer in info.moe_layers)
    assert 0 <= info.experts_per_token <= info.num_experts
