"""selfcheck.safetensors, and its comparison with an engine's answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ernie_export.validate.selfcheck import About, Answer, Bound, SelfCheck

JSON = False
TOKENS = (
    b'"dtype":"I16"',
    b'"shape":[1,2,',
    b'"data_offsets":[',
    b'\\"vocab_size\\":5',
    b"bounds",
    b"I32",
    b"F32",
)


def seeds() -> Iterator[bytes]:
    about = About(vocab_size=5, num_experts=4, experts_per_token=1, bounds={"logits.kl_mean": Bound(max=1)})
    arrays = {
        "tokens": np.array([[1, 2]], np.int32),
        "top": np.array([[[3, 1], [0, 4]]], np.int32),
        "top_logits": np.array([[[2, 1], [1, 0.5]]], np.float32),
        "rest": np.array([[0, 0]], np.float32),
        "spread": np.array([0, 4], np.int32),
        "spread_logits": np.zeros((1, 2, 2), np.float32),
        "layers": np.array([1], np.int32),
        "experts": np.array([[[[0, 1], [2, 3]]]], np.int16),
        "choice": np.array([[[[0.5, 0.2], [0.4, 0.3]]]], np.float32),
    }
    yield save(arrays, {"selfcheck": about.to_json()})
    dense = {**arrays, "layers": arrays["layers"][:0], "experts": arrays["experts"][:0, :, :, :0]}
    yield save({**dense, "choice": arrays["choice"][:0, :, :, :0]}, {"selfcheck": about.to_json()})


def parse(data: bytes, folder: Path) -> None:
    (folder / SelfCheck.FILE).write_bytes(data)
    check = SelfCheck.read(folder)
    about, (prompts, count) = check.about, check.tokens.shape
    if about.vocab_size * prompts * count > 1 << 16 or about.num_experts > 1 << 12:
        return  # no engine is as large as that
    logits = np.zeros((count, about.vocab_size), np.float32)
    experts = {layer: np.zeros((count, about.experts_per_token), np.int64) for layer in check.layers.tolist()}
    check.metrics([Answer(logits, experts)] * prompts)
