"""The main graph: its interface, its nodes, and that no weight and no trace of this machine is in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.graph import trace, write
from ernie_export.recipe import Recipe


@pytest.mark.parametrize("recipe", ["fp32", "int4"])
def test_interface_and_nodes(nano: Path, recipe: str) -> None:
    config = ErnieConfig.read(nano)
    model = trace.trace(config, Recipe.find(recipe).parts, 64)
    shapes = {value.name: [str(size) for size in value.shape or ()] for value in model.graph.inputs}
    assert shapes.pop("input_ids") == shapes.pop("position_ids") == ["batch", "sequence"]
    assert shapes.pop("attention_mask") == ["batch", "total"]
    assert len(shapes) == 2 * config.num_hidden_layers
    assert shapes["past_key_values.5.value"] == ["batch", "2", "past", "32"]
    outputs = [value.name for value in model.graph.outputs]
    assert outputs[:3] == ["logits", "present.0.key", "present.0.value"]
    assert [str(size) for size in model.graph.outputs[0].shape or ()] == ["batch", "sequence", "1536"]

    nodes = Counter(node.op_type for node in model.graph)
    moe = len(config.moe_layers)
    assert (nodes["MoERouting"], nodes["MoEExperts"]) == (moe, moe)
    assert nodes["CachedAttention"] == config.num_hidden_layers
    assert nodes["RMSNormalization"] == 2 * config.num_hidden_layers + 1
    assert ("QuantizedLinear" in nodes) == (recipe == "int4")
    names = {output.name for node in model.graph for output in node.outputs}
    for layer in range(config.num_hidden_layers):
        assert f"layers.{layer}.output" in names
        assert (f"layers.{layer}.routing.indices" in names) == (layer in config.moe_layers)


def test_same_model_same_bytes_and_nothing_of_this_machine(nano: Path) -> None:
    config, parts = ErnieConfig.read(nano), Recipe.find("int4").parts

    def data() -> bytes:
        model = trace.trace(config, parts, 64)
        return write.serialize(write.assemble(model, write.weight_files(model), "onnxruntime", 4))

    first = data()
    assert first == data()
    assert b"ernie.py" not in first and b"site-packages" not in first
    assert len(first) < 100_000  # no weights inside


def test_tied_head_of_another_format_has_its_own_copy(nano: Path) -> None:
    config = ErnieConfig.read(nano)
    parts = Recipe.find("int4").parts
    shared = trace.trace(config, parts, 64)
    apart = trace.trace(config, parts.model_copy(update={"head": parts.experts}), 64)
    assert "head.weight" not in shared.graph.initializers
    assert "head.weight" in apart.graph.initializers


def test_trace_holds_no_weights(nano: Path) -> None:
    """A shape of 300 GB traces as easily as a small one."""
    small = ErnieConfig.read(nano)
    huge = small.model_copy(
        update={
            "hidden_size": 8192,
            "moe_num_experts": 64,
            "moe_intermediate_size": 65536,
            "num_hidden_layers": 2,
        }
    )
    model = trace.trace(huge, Recipe.find("int4").parts, 64)
    assert sum(file.size for file in write.weight_files(model)) > 40e9


@pytest.mark.parametrize("shared", [0, 2])
def test_shared_experts_or_none(nano: Path, shared: int) -> None:
    config = ErnieConfig.read(nano).model_copy(update={"moe_num_shared_experts": shared})
    model = trace.trace(config, Recipe.find("fp32").parts, 64)
    assert any(".shared." in name for name in model.graph.initializers) == bool(shared)
