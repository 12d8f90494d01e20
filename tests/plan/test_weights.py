from __future__ import annotations

import json
from pathlib import Path

import pytest

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.errors import UserError
from ernie_export.graph import trace, write
from ernie_export.graph.weights import read_layout
from ernie_export.plan.weights import bytes_by_part, weight_files
from ernie_export.recipe import LayerParts, PartFormat, Parts, Recipe

UNUSUAL = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "moe_num_shared_experts": 0,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 3,
    "moe_layer_interval": 2,
}


@pytest.mark.parametrize("name", Recipe.names())
def test_the_files_are_those_of_the_traced_graph(name: str, nano: Path) -> None:
    config, parts = ErnieConfig.read(nano), Recipe.find(name).parts
    assert weight_files(config, parts, 512) == write.weight_files(trace.trace(config, parts, 512))


def test_untied_without_shared_experts_and_with_gaps_between_moe_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UNUSUAL))
    config = ErnieConfig.read(tmp_path)
    part = PartFormat(format="int4", block_size=32)
    other = PartFormat(format="int8", block_size=64)
    parts = Parts(experts=part, attention=other, shared=part, dense=part, head=part, embedding=other)
    assert weight_files(config, parts, 64) == write.weight_files(trace.trace(config, parts, 64))


def test_layers_with_formats_of_their_own(nano: Path) -> None:
    config, int8 = ErnieConfig.read(nano), PartFormat(format="int8", block_size=32)
    parts = Recipe.find("int4").parts.model_copy(
        update={
            "layers": {
                "0": LayerParts(dense=PartFormat(format="fp16")),
                "1-2": LayerParts(experts=int8, attention=int8),
                "3": LayerParts(experts=PartFormat(format="fp32"), shared=int8),
            }
        }
    )
    assert weight_files(config, parts, 512) == write.weight_files(trace.trace(config, parts, 512))


@pytest.mark.parametrize("name", ["int4", "fp32"])
def test_the_files_are_those_of_a_bundle(name: str, nano: Path, bundle) -> None:
    config, folder = ErnieConfig.read(nano), bundle(name)
    planned = weight_files(config, Recipe.find(name).parts, config.max_position_embeddings)
    assert {file.path: file for file in planned} == {
        file.path: file for file in read_layout(folder / "model.onnx")
    }
    on_disk = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.bin")}
    assert {file.path: file.size for file in planned} == on_disk
    assert sum(bytes_by_part(planned).values()) == sum(on_disk.values())


def test_the_21b_takes_11_6_gb_in_int4_with_an_fp16_head(the_21b: ErnieConfig, int4_fp16_head: Parts) -> None:
    sizes = bytes_by_part(weight_files(the_21b, int4_fp16_head, 4096))
    assert 11.6e9 < sum(sizes.values()) < 11.7e9
    assert sizes["experts"] == 27 * 64 * 3 * 2560 * 1536 * 4.125 / 8
    assert sizes["embedding"] == 103424 * 2560 * 2 and sizes["head"] == 0
    assert sizes["router"] == 27 * (64 * 2560 + 64) * 4


def test_a_shape_that_has_no_whole_number_of_blocks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UNUSUAL))
    with pytest.raises(UserError) as caught:
        weight_files(ErnieConfig.read(tmp_path), Recipe.find("int4").parts, 64)
    assert str(caught.value).startswith(
        "layers.0.mlp.down.weight has rows of 160 weights, which is no multiple of the block size 128."
    )
