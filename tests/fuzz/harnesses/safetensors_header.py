"""The header of a safetensors file; its length is right, and 64 bytes of weights follow it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.harnesses import safetensors_file

JSON = True
TOKENS = safetensors_file.TOKENS


def seeds() -> Iterator[bytes]:
    yield json.dumps({"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    parts = {
        name: {"dtype": "BF16", "shape": [2, 1, 8], "data_offsets": [at, at + 32]}
        for name, at in (("model.norm.weight", 0), ("lm_head.weight", 32))
    }
    yield json.dumps({"__metadata__": {"format": "pt"}} | parts).encode()
    yield b'{"a":{"dtype":"F4","shape":[128],"data_offsets":[0,64]}}'


def parse(data: bytes, folder: Path) -> None:
    safetensors_file.parse(len(data).to_bytes(8, "little") + data + bytes(range(64)), folder)
