from __future__ import annotations

from ernie_export.checkpoint import embedded
from ernie_export.checkpoint.checkpoint import Checkpoint


def test_the_embedded_checkpoint_is_whole_and_as_the_published_ones() -> None:
    checkpoint = Checkpoint.open(embedded.folder())
    config = checkpoint.config
    assert config.architecture == "Ernie4_5_MoeForCausalLM"
    assert len(config.moe_layers) >= 5 and not config.is_moe_layer(0)
    assert config.moe_num_experts >= 16 and config.moe_k == 4 and config.moe_num_shared_experts >= 1
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.hidden_size % 128 == config.moe_intermediate_size % 128 == 0
    assert checkpoint.notes == []
    gate = "model.layers.1.mlp.gate.weight"
    assert {checkpoint.tensors[name].dtype for name in checkpoint.tensors} == {"bf16", "fp32"}
    assert checkpoint.tensors[gate].dtype == "fp32"
    assert sum(checkpoint.files.values()) <= 20_000_000
