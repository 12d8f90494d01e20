"""A whole safetensors file, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ernie_export.checkpoint.safetensors import DTYPES, TensorFile

JSON = False
TOKENS = (b'"dtype":"', b"BF16", b"F8_E4M3", b"BOOL", b'"shape":[', b'"data_offsets":[', b'"__metadata__":{')


def seeds() -> Iterator[bytes]:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    yield save({"a": weights})
    yield save({"a": weights.astype(np.float16), "b.c": weights, "empty": weights[:0]}, {"format": "pt"})
    yield save({})
    yield b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def parse(data: bytes, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    file = TensorFile(path)
    for name, info in file.tensors.items():
        assert 0 <= info.offset <= info.offset + info.nbytes <= file.nbytes
        assert sum(map(len, file.pieces(name))) == info.nbytes
        if info.dtype in DTYPES:
            array = file.array(name)
            assert array.nbytes == info.nbytes and array.tobytes() == b"".join(file.pieces(name))
