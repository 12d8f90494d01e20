"""config.json of a checkpoint, and the tensors that it asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.layout import part_of, tensor_shapes
from tests.checkpoint.conftest import TINY

JSON = True
TOKENS = (
    b'"rope_parameters":{"rope_theta":',
    b'"rope_scaling":',
    b'"type":"linear"',
    b'"moe_k":[',
    b'"use_bias":',
)
PUBLISHED = Path(__file__).parents[2] / "checkpoint" / "configs"


def seeds() -> Iterator[bytes]:
    yield json.dumps(TINY).encode()
    for path in sorted(PUBLISHED.glob("*.json")):
        yield path.read_bytes()


def parse(data: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(data)
    config = ErnieConfig.read(folder)
    assert ErnieConfig.model_validate(config.model_dump()) == config
    assert set(config.moe_layers) <= set(range(config.num_hidden_layers))
    shapes = tensor_shapes(config)
    assert {part_of(name) for name in shapes} >= {"embedding", "attention", "norms"}
    assert all(size >= 1 for shape in shapes.values() for size in shape)
