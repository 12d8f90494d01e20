"""Small ERNIE-4.5 models with random weights, saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
# Twelve, so that an order of the experts by name (0, 1, 10, 11, 2, …) would show.
EXPERTS: dict[str, Any] = {
    "moe_num_experts": 12,
    "moe_k": 3,
    "moe_intermediate_size": 16,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """(model, folder): mixture of experts, with a correction bias that moves the choice."""
    import torch
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    torch.manual_seed(7)
    model = Ernie4_5_MoeForCausalLM(Ernie4_5_MoeConfig(**SHAPE, **EXPERTS, attn_implementation="eager"))
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.gate.weight.normal_(std=0.5)
            layer.mlp.gate.moe_statics.e_score_correction_bias.normal_(std=0.05)
    return _saved(model, tmp_path_factory.mktemp("moe"))


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    import torch
    from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

    torch.manual_seed(8)
    config = Ernie4_5Config(**SHAPE, head_dim=16, attn_implementation="eager")
    return _saved(Ernie4_5ForCausalLM(config), tmp_path_factory.mktemp("dense"))


def _saved(model: Any, folder: Path) -> tuple[Any, Path]:
    model.eval().save_pretrained(folder)
    return model, folder
