from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.layout import PARTS, part_of, published_name, tensor_shapes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 6, "moe_layer_interval": 2, "moe_layer_end_index": 4},
        {"num_hidden_layers": 5, "moe_layer_start_index": 3, "moe_num_shared_experts": 0},
        {"tie_word_embeddings": False, "moe_num_shared_experts": 2, "num_key_value_heads": 4},
    ],
)
def test_the_table_is_transformers_own_moe(
    tiny_config: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    config = read(tmp_path, tiny_config | changes)
    fields = {name: value for name, value in (tiny_config | changes).items() if name != "rope_theta"}
    assert tensor_shapes(config, merged=config.moe_layers) == shapes_of(
        Ernie4_5_MoeForCausalLM, Ernie4_5_MoeConfig(**fields), config
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_table_is_transformers_own_dense(tiny_config: dict[str, Any], tmp_path: Path, tied: bool) -> None:
    from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

    fields = {name: value for name, value in tiny_config.items() if not name.startswith(("moe_", "rope_"))}
    fields |= {"architectures": ["Ernie4_5ForCausalLM"], "head_dim": 32, "tie_word_embeddings": tied}
    config = read(tmp_path, fields)
    assert tensor_shapes(config) == shapes_of(Ernie4_5ForCausalLM, Ernie4_5Config(**fields), config)


def read(folder: Path, config: dict[str, Any]) -> ErnieConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return ErnieConfig.read(folder)


def shapes_of(model: Any, its_config: Any, config: ErnieConfig) -> dict[str, tuple[int, ...]]:
    import torch

    with torch.device("meta"):
        state = model(its_config).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {published_name(name): tuple(tensor.shape) for name, tensor in state.items()}


def test_parts(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    config = read(tmp_path, tiny_config | {"tie_word_embeddings": False})
    by_part: dict[str, set[str]] = {part: set() for part in PARTS}
    for name in tensor_shapes(config):
        by_part[part_of(name)].add(name)
    moe, dense = "model.layers.1.mlp.", "model.layers.0.mlp."
    mlp = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    assert by_part["dense"] == {dense + name for name in mlp}
    assert {moe + f"experts.3.{name}" for name in mlp} <= by_part["experts"]
    assert {moe + f"shared_experts.{name}" for name in mlp} <= by_part["shared"]
    assert {moe + "gate.weight", moe + "moe_statics.e_score_correction_bias"} <= by_part["router"]
    assert by_part["embedding"] == {"model.embed_tokens.weight"}
    assert by_part["head"] == {"lm_head.weight"}
    counts = {part: len(names) for part, names in by_part.items()}
    assert counts == {
        "experts": 2 * 4 * 3, "attention": 3 * 4, "shared": 2 * 3, "dense": 3,
        "embedding": 1, "head": 1, "router": 2 * 2, "norms": 2 * 3 + 1,
    }  # fmt: skip
    merged = tensor_shapes(config, merged=[1])
    assert part_of("model.layers.1.mlp.experts.gate_up_proj") == "experts"
    assert merged["model.layers.1.mlp.experts.gate_up_proj"] == (4, 64, 64)
    assert "model.layers.1.mlp.experts.0.up_proj.weight" not in merged
    assert "model.layers.2.mlp.experts.0.up_proj.weight" in merged
