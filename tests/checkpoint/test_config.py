from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.errors import UserError


def read(folder: Path, config: Any) -> ErnieConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return ErnieConfig.read(folder)


def test_the_21b(published_config: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    config = read(tmp_path, published_config("21B"))
    assert config.architecture == "Ernie4_5_MoeForCausalLM"
    assert config.head_dim == 128
    assert config.moe_layers == tuple(range(1, 28))
    assert not config.is_moe_layer(0) and config.is_moe_layer(27)
    assert config.shared_intermediate_size == 3072
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, (2,), 0)


def test_the_300b_has_no_shared_experts(
    published_config: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    config = read(tmp_path, published_config("300B"))
    assert config.moe_layers == tuple(range(3, 54))
    assert config.shared_intermediate_size == 0
    assert not config.tie_word_embeddings


def test_the_dense_03b_in_either_spelling(
    published_config: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    published = published_config("0.3B")
    config = read(tmp_path, published)
    assert config.architecture == "Ernie4_5ForCausalLM"
    assert config.head_dim == 128  # not hidden ÷ heads, which is 64
    assert config.moe_layers == () and config.moe_num_experts == 0
    assert read(tmp_path, published | {"architectures": ["Ernie4_5ForCausalLM"]}) == config


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"rope_theta": 10000.0}, "rope_theta", 10000.0),
        (
            {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}},
            "rope_theta",
            7e4,
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "rope_theta", 5e5),
        ({"rope_theta": None}, "rope_theta", 5e5),
        ({"rope_scaling": {"type": "default"}}, "rope_theta", 5e5),
        ({"moe_num_experts": [4]}, "moe_num_experts", 4),
        ({"moe_intermediate_size": [32]}, "moe_intermediate_size", 32),
        ({"moe_layer_end_index": -1}, "moe_layers", (1, 2)),
        ({"moe_layer_end_index": None}, "moe_layers", (1, 2)),
        ({"moe_layer_end_index": 1}, "moe_layers", (1,)),
        ({"moe_layer_interval": 2}, "moe_layers", (1,)),
        ({"moe_num_shared_experts": None}, "shared_intermediate_size", 0),
        ({"eos_token_id": [2, 5]}, "eos_token_id", (2, 5)),
        ({"eos_token_id": None}, "eos_token_id", ()),
        ({"pad_token_id": None}, "pad_token_id", None),
        ({"num_key_value_heads": None}, "num_key_value_heads", 4),
        ({"head_dim": 32}, "head_dim", 32),
        ({"tie_word_embeddings": None}, "tie_word_embeddings", True),
        ({"a_field_of_next_year": {"x": 1}}, "hidden_size", 64),
    ],
)
def test_forms_that_are_published(
    tiny_config: dict[str, Any], tmp_path: Path, changes: dict[str, Any], field: str, value: Any
) -> None:
    assert getattr(read(tmp_path, tiny_config | changes), field) == value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["Ernie4_5_VLMoeForConditionalGeneration"]},
            "is a vision-language model. Give an ERNIE",
        ),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM is not an ERNIE-4.5 text model"),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": "Ernie4_5ForCausalLM"}, "names no architecture"),
        ({"use_bias": True}, "use_bias is true, but no published ERNIE-4.5 has biases"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", ERNIE-4.5 has silu'),
        ({"moe_gate_act": "sigmoid"}, 'moe_gate_act is "sigmoid", ERNIE-4.5 has softmax'),
        ({"quantization_config": {"quant_method": "fp8"}}, "the weights are quantized"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, 'rope_scaling asks for "yarn" scaling'),
        ({"rope_parameters": {"rope_type": "linear"}}, 'rope_parameters asks for "linear" scaling'),
        ({"rope_parameters": [1]}, "rope_parameters is [1], not an object"),
        (
            {"rope_parameters": {"rope_theta": 1e4}},
            "rope_theta is 500000.0, but rope_parameters says 10000.0",
        ),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"moe_k": None}, "moe_k is missing"),
        ({"hidden_size": "64"}, 'hidden_size is "64": input should be a valid integer'),
        ({"hidden_size": 64.5}, "hidden_size is 64.5: input should be a valid integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true: input should be a valid integer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000: input should be less than or equal"),
        ({"vocab_size": 0}, "vocab_size is 0: input should be greater than or equal to 1"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05: input should be greater than 0"),
        ({"rope_theta": float("nan")}, "rope_theta is NaN"),
        ({"eos_token_id": "</s>"}, 'eos_token_id is "</s>"'),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1: input should be a valid boolean"),
        ({"num_attention_heads": 3}, "hidden_size is 64, not a multiple of num_attention_heads, 3"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, not a multiple of num_key_value_heads, 3"),
        ({"head_dim": 15}, "head_dim is 15, but RoPE turns pairs"),
        ({"moe_num_experts": 0}, "moe_num_experts is 0"),
        ({"moe_num_experts": [4, 4]}, "moe_num_experts is [4, 4]: input should be a valid integer"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
        ({"moe_k": 0}, "moe_k is 0, but a token can choose 1 to 4 experts"),
        ({"moe_k": 5}, "moe_k is 5, but a token can choose 1 to 4 experts"),
        ({"moe_layer_start_index": 3}, "leave no layer with experts"),
        ({"moe_layer_interval": 0}, "moe_layer_interval is 0"),
    ],
)
def test_what_is_refused(
    tiny_config: dict[str, Any], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, tiny_config | changes)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"architectures": ["\xff"]}', "is not UTF-8 text (byte 20)"),
        (b'{"architectures": ', "is not JSON (Expecting value"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b"", "is not JSON"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        ErnieConfig.read(tmp_path)
    assert words in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(changes=st.dictionaries(st.sampled_from([*ErnieConfig.model_fields, "rope_parameters"]), json_values))
def test_no_value_of_any_field_is_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = Path(__file__).parent / "configs"
    config = json.loads((folder / "21B.json").read_text()) | changes
    try:
        read(tmp_path_factory.getbasetemp(), config)
    except UserError as error:
        assert "\n" not in str(error)
