"""model.safetensors.index.json, beside two whole shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.shards import INDEX
from tests.checkpoint.conftest import TINY, Folder

JSON = True
TOKENS = (b'"weight_map":{', b'"model-00001-of-00002.safetensors"', b"../", b"config.json", b"\\u0000")


@cache
def files() -> dict[str, bytes]:
    """A checkpoint of one layer in two shards."""
    config = TINY | {"num_hidden_layers": 1, "moe_layer_start_index": 0, "moe_num_experts": 2, "moe_k": 1}
    with TemporaryDirectory() as folder:
        written = Folder(Path(folder) / "model", config).write(shards=2)
        return {path.name: path.read_bytes() for path in written.iterdir()}


def seeds() -> Iterator[bytes]:
    whole = files()[INDEX]
    yield whole
    yield json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}).encode()


def parse(data: bytes, folder: Path) -> None:
    for name, content in files().items():
        if not (folder / name).exists():
            (folder / name).write_bytes(content)
    (folder / INDEX).write_bytes(data)
    checkpoint = Checkpoint.open(folder)
    assert all(info.path.parent == folder for info in checkpoint.tensors.values())
