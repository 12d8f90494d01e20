from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.inspect import CheckpointSummary, active_parameters, parameters, summary


def test_the_21b_at_its_true_size(
    published_config: Callable[[str], dict[str, Any]], with_holes: Callable[[dict[str, Any]], Path]
) -> None:
    checkpoint = Checkpoint.open(with_holes(published_config("21B")))
    seen = summary(checkpoint)
    assert round(seen.parameters / 1e9, 2) == 21.83
    assert round(seen.active_parameters / 1e9) == 3
    assert (seen.layers, seen.moe_layers, seen.experts, seen.experts_per_token) == (28, 27, 64, 6)
    assert (seen.shared_experts, seen.attention_heads, seen.key_value_heads, seen.head_dim) == (2, 20, 4, 128)
    assert (seen.hidden_size, seen.vocab_size, seen.context, seen.tied_head) == (2560, 103424, 131072, True)
    assert seen.dtypes == {"bf16": 1 + 28 * 6 + 3 + 27 * (64 * 3 + 3) + 1, "fp32": 27 * 2}
    assert sum(seen.bytes_by_part.values()) == seen.bytes
    assert round(seen.bytes / 1e9, 1) == 43.7
    assert seen.bytes_by_part["experts"] == 27 * 64 * 3 * 1536 * 2560 * 2
    assert seen.bytes_by_part["router"] == 27 * (64 * 2560 + 64) * 4
    assert seen.bytes_by_part["head"] == 0
    [(file, size)] = seen.files.items()
    assert file == "model.safetensors" and size > seen.bytes
    assert CheckpointSummary.model_validate_json(seen.model_dump_json()) == seen


@pytest.mark.parametrize(("name", "total", "active"), [("300B", 299, 47), ("0.3B", 0.36, 0.36)])
def test_the_siblings(
    published_config: Callable[[str], dict[str, Any]], tmp_path: Path, name: str, total: float, active: float
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published_config(name)))
    config = ErnieConfig.read(tmp_path)
    assert parameters(config) / 1e9 == pytest.approx(total, rel=0.01)
    assert active_parameters(config) / 1e9 == pytest.approx(active, rel=0.01)


def test_notes_and_files_of_a_small_one(make: Callable[..., Any]) -> None:
    folder = make("tiny", tie_word_embeddings=False)
    for name in ("model.mtp_emb_norm.0.weight", "model.mtp_hidden_norm.0.weight"):
        folder.arrays[name] = folder.arrays["model.norm.weight"]
    seen = summary(Checkpoint.open(folder.write(shards=2)))
    assert seen.name == "tiny"
    assert seen.parameters == sum(a.size for n, a in folder.arrays.items() if "mtp" not in n)
    idle = 2 * 2 * 3 * 64 * 32  # layers, experts not chosen, matrices, width of each
    assert seen.active_parameters == seen.parameters - idle - 96 * 64
    assert list(seen.files) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert seen.notes == ["multi-token prediction (mtp) is ignored: 2 tensors"]
