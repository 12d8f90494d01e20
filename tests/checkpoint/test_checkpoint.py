from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.errors import UserError
from ernie_export.progress import Silent

GATE = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.moe_statics.e_score_correction_bias"
BIAS_IN_TRANSFORMERS = "model.layers.1.mlp.gate.moe_statics.e_score_correction_bias"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize("form", ["fp32", "sharded", "merged"])
def test_every_form_that_transformers_writes_holds_the_same(
    saved_by_transformers: dict[str, Path], form: str
) -> None:
    from transformers import Ernie4_5_MoeForCausalLM

    state = Ernie4_5_MoeForCausalLM.from_pretrained(saved_by_transformers["fp32"]).state_dict()
    checkpoint = Checkpoint.open(saved_by_transformers[form])
    seen = set()
    for layer in checkpoint.config.moe_layers:
        prefix = f"model.layers.{layer}.mlp.experts"
        gate_up, down = state[f"{prefix}.gate_up_proj"], state[f"{prefix}.down_proj"]
        for expert in range(checkpoint.config.moe_num_experts):
            weights = checkpoint.expert(layer, expert)
            assert np.array_equal(np.concatenate([weights.gate, weights.up]), gate_up[expert].numpy())
            assert np.array_equal(weights.down, down[expert].numpy())
        seen |= {f"{prefix}.gate_up_proj", f"{prefix}.down_proj"}
    for name in checkpoint.tensors:
        if ".mlp.experts." not in name:
            stored = name.replace(".mlp.moe_statics.", ".mlp.gate.moe_statics.")
            assert np.array_equal(checkpoint.array(name), state[stored].numpy()), name
            seen.add(stored)
    assert seen == set(state) - {"lm_head.weight"}
    assert checkpoint.notes == []


def test_fp16_as_transformers_writes_it(saved_by_transformers: dict[str, Path]) -> None:
    whole, half = (Checkpoint.open(saved_by_transformers[form]) for form in ("fp32", "fp16"))
    for name in whole.tensors:
        assert half.array(name).dtype == np.float16
        assert np.array_equal(half.array(name), whole.array(name).astype(np.float16))


def test_bf16_with_an_fp32_router_as_published(make: Callable[..., Any]) -> None:
    folder = make()
    for name, array in folder.arrays.items():
        if name not in (GATE, BIAS):
            folder.arrays[name] = array.astype(ml_dtypes.bfloat16)
    checkpoint = Checkpoint.open(folder.write())
    for name, array in folder.arrays.items():
        assert checkpoint.array(name).dtype == array.dtype
        assert np.array_equal(checkpoint.array(name), array)
    assert checkpoint.tensors[GATE].dtype == "fp32" and checkpoint.tensors[EMBEDDING].dtype == "bf16"


def test_no_copy_is_made(saved_by_transformers: dict[str, Path]) -> None:
    for form in ("fp32", "merged"):
        checkpoint = Checkpoint.open(saved_by_transformers[form])
        for array in (checkpoint.array(EMBEDDING), *checkpoint.expert(1, 2)):
            assert not array.flags.owndata and not array.flags.writeable


def test_the_other_spelling_of_the_bias_reads_by_the_published_name(make: Callable[..., Any]) -> None:
    folder = make()
    bias = folder.arrays.pop(BIAS)
    folder.arrays[BIAS_IN_TRANSFORMERS] = bias
    checkpoint = Checkpoint.open(folder.write())
    assert np.array_equal(checkpoint.array(BIAS), bias)


def test_an_untied_head_is_a_tensor_of_the_model(make: Callable[..., Any]) -> None:
    folder = make(tie_word_embeddings=False)
    checkpoint = Checkpoint.open(folder.write())
    assert np.array_equal(checkpoint.array("lm_head.weight"), folder.arrays["lm_head.weight"])


def test_a_tied_head_in_the_file_is_noted(make: Callable[..., Any]) -> None:
    folder = make()
    folder.arrays["lm_head.weight"] = folder.arrays[EMBEDDING]
    checkpoint = Checkpoint.open(folder.write(shards=3))
    assert "lm_head.weight" not in checkpoint.tensors
    assert checkpoint.notes == ["lm_head.weight is ignored: the head is tied, and it equals the embedding"]


def test_an_index_beside_the_single_file_is_noted(make: Callable[..., Any]) -> None:
    folder = make()
    folder.write(shards=2)
    checkpoint = Checkpoint.open(folder.write())
    assert list(checkpoint.files) == ["model.safetensors"]
    [note] = checkpoint.notes
    assert note.startswith("model.safetensors.index.json is ignored")


def test_mtp_tensors_are_noted(make: Callable[..., Any]) -> None:
    folder = make()
    for name in ("model.mtp_block.0.mlp.up_proj.weight", "model.mtp_linear_proj.0.weight"):
        folder.arrays[name] = np.zeros((2, 2), np.float32)
    checkpoint = Checkpoint.open(folder.write())
    assert not any("mtp" in name for name in checkpoint.tensors)
    assert checkpoint.notes == ["multi-token prediction (mtp) is ignored: 2 tensors"]


def test_sources_are_the_tensors_below_a_prefix(make: Callable[..., Any]) -> None:
    checkpoint = Checkpoint.open(make(num_hidden_layers=11).write())
    assert len(checkpoint.sources("model.layers.0")) == 9
    assert len(checkpoint.sources("model.layers.1.")) == 4 + 2 + 2 + 3 + 4 * 3  # and nothing of layer 10
    assert checkpoint.sources("model.layers.1.mlp.experts.3") == [
        f"model.layers.1.mlp.experts.3.{name}_proj.weight" for name in ("down", "gate", "up")
    ]
    assert checkpoint.sources("model.layers.99") == []


def test_tensors_come_in_the_order_of_the_files(make: Callable[..., Any]) -> None:
    tensors = list(Checkpoint.open(make().write(shards=2)).tensors.values())
    assert tensors == sorted(tensors, key=lambda info: (info.path, info.offset))


def test_links_are_followed_as_in_the_hugging_face_cache(make: Callable[..., Any], tmp_path: Path) -> None:
    stored = make().write(shards=2)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in stored.iterdir():
        (snapshot / path.name).symlink_to(path)
    direct, linked = Checkpoint.open(stored), Checkpoint.open(snapshot)
    assert linked.fingerprint(Silent()) == direct.fingerprint(Silent())
    assert linked.identity() == direct.identity()


def test_reading_takes_no_memory_of_its_own(
    with_holes: Callable[[dict[str, Any]], Path], tiny_config: dict[str, Any]
) -> None:
    """Hashing and viewing 128 MiB of weights leaves the anonymous memory where it was."""
    checkpoint = Checkpoint.open(with_holes(tiny_config | {"vocab_size": 1 << 20}))
    assert checkpoint.tensors[EMBEDDING].nbytes == 128 << 20
    before = anonymous_memory()
    checkpoint.fingerprint(Silent())
    embedding = checkpoint.array(EMBEDDING)
    assert float(embedding[-1, -1]) == 0.0
    assert anonymous_memory() - before < 16 << 20


def anonymous_memory() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


# What is wrong, a function that makes it so in a Folder and writes it, and the words of the error.


def missing_tensor(folder: Any) -> None:
    for expert in range(4):
        del folder.arrays[f"model.layers.2.mlp.experts.{expert}.up_proj.weight"]
    folder.write()


def name_of_two_lines(folder: Any) -> None:
    folder.arrays["a\nb"] = np.zeros(3, np.float32)
    folder.write()


def extra_tensor(folder: Any) -> None:
    folder.arrays["model.layers.7.self_attn.q_proj.weight"] = np.zeros(3, np.float32)
    folder.write()


def shared_experts_nobody_asked_for(folder: Any) -> None:
    folder.config["moe_num_shared_experts"] = 0
    folder.write()


def wrong_shape(folder: Any) -> None:
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    folder.arrays[name] = folder.arrays[name][:, :-1].copy()
    folder.write()


def wrong_type(folder: Any) -> None:
    folder.arrays[GATE] = folder.arrays[GATE].astype(np.int8)
    folder.write()


def all_at_once(folder: Any) -> None:
    folder.arrays["model.layers.1.mlp.gate.bias"] = folder.arrays.pop(GATE)
    folder.arrays["model.norm.weight"] = np.zeros(3, np.float32)
    folder.write()


def both_forms_of_experts(folder: Any) -> None:
    folder.arrays["model.layers.1.mlp.experts.gate_up_proj"] = np.zeros((4, 64, 64), np.float32)
    folder.arrays["model.layers.1.mlp.experts.down_proj"] = np.zeros((4, 64, 32), np.float32)
    folder.write()


def both_spellings_of_the_bias(folder: Any) -> None:
    folder.arrays[BIAS_IN_TRANSFORMERS] = folder.arrays[BIAS]
    folder.write()


def untied_head_missing(folder: Any) -> None:
    folder.config["tie_word_embeddings"] = False
    folder.write()


def tied_head_differs(folder: Any) -> None:
    folder.arrays["lm_head.weight"] = folder.arrays[EMBEDDING].copy()
    folder.arrays["lm_head.weight"][-1, -1] += 1
    folder.write()


def layout_of_paddle(folder: Any) -> None:
    folder.arrays["model.layers.0.mlp.up_gate_proj.weight"] = folder.arrays.pop(
        "model.layers.0.mlp.up_proj.weight"
    )
    folder.write()


def pickle_only(folder: Any) -> None:
    (folder.path / "pytorch_model.bin").write_bytes(b"PK")


def no_weights(folder: Any) -> None:
    pass


def missing_shard(folder: Any) -> None:
    folder.write(shards=3)
    (folder.path / "model-00002-of-00003.safetensors").unlink()


def tensor_in_two_shards(folder: Any) -> None:
    folder.write(shards=2)
    first, second = sorted(folder.path.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())


def index_promises_too_much(folder: Any) -> None:
    folder.write(shards=2)
    change_index(folder, '"weight_map": {', '"weight_map": {"model.x": "model-00001-of-00002.safetensors", ')


def index_names_the_wrong_shard(folder: Any) -> None:
    folder.write(shards=2)
    change_index(folder, '"model.norm.weight": "model-00001', '"model.norm.weight": "model-00002')


def index_leads_outside(folder: Any) -> None:
    folder.write(shards=2)
    change_index(folder, '"model-00001', '"../model-00001')


def index_leads_to_the_root(folder: Any) -> None:
    folder.write(shards=2)
    change_index(folder, '"model-00001', '"/etc/model-00001')


def index_names_no_possible_file(folder: Any) -> None:
    (folder.path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "n" * 300, "b": "\0", "c": "\ud800"}})
    )


def index_without_files(folder: Any) -> None:
    (folder.path / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": 1}}')


def index_without_map(folder: Any) -> None:
    (folder.path / "model.safetensors.index.json").write_text('{"weight_map": []}')


def index_is_no_json(folder: Any) -> None:
    (folder.path / "model.safetensors.index.json").write_text("{")


def truncated_file(folder: Any) -> None:
    path = folder.write() / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def change_index(folder: Any, old: str, new: str) -> None:
    path = folder.path / "model.safetensors.index.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            missing_tensor,
            "4 missing (model.layers.2.mlp.experts.0.up_proj.weight, model.layers.2.mlp.experts.1"
            ".up_proj.weight, model.layers.2.mlp.experts.2.up_proj.weight and 1 more)",
        ),
        (name_of_two_lines, "1 not asked for ('a\\nb')"),
        (extra_tensor, "1 not asked for (model.layers.7.self_attn.q_proj.weight)"),
        (shared_experts_nobody_asked_for, "6 not asked for (model.layers.1.mlp.shared_experts."),
        (
            wrong_shape,
            "model.layers.2.mlp.experts.3.up_proj.weight has shape [32, 63], the config asks for [32, 64]",
        ),
        (wrong_type, f"{GATE} is I8, only bf16, fp16, fp32 are read"),
        (
            all_at_once,
            f"1 missing ({GATE}); 1 not asked for (model.layers.1.mlp.gate.bias); "
            "model.norm.weight has shape [3], the config asks for [64]. Take config.json",
        ),
        (both_forms_of_experts, "12 not asked for (model.layers.1.mlp.experts."),
        (both_spellings_of_the_bias, "holds one tensor under two names"),
        (untied_head_missing, "1 missing (lm_head.weight)"),
        (tied_head_differs, "lm_head.weight differs from model.embed_tokens.weight"),
        (layout_of_paddle, "This is the layout of PaddlePaddle: take the -PT release"),
        (
            pickle_only,
            "as pickle (pytorch_model.bin), which can run any code when it is opened. Where you trust it",
        ),
        (no_weights, "holds neither model.safetensors nor model.safetensors.index.json"),
        (missing_shard, "lacks 1 of its 3 shards: model-00002-of-00003.safetensors"),
        (
            tensor_in_two_shards,
            "is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors",
        ),
        (index_promises_too_much, "promises what the shards lack, 1: model.x"),
        (index_names_the_wrong_shard, "promises what the shards lack, 1: model.norm.weight"),
        (index_leads_outside, "names ../model-00001-of-00002.safetensors, which lies outside the folder"),
        (
            index_leads_to_the_root,
            "names /etc/model-00001-of-00002.safetensors, which lies outside the folder",
        ),
        (index_names_no_possible_file, "lacks 3 of its 3 shards: '\\x00', nnnn"),
        (index_without_files, "names no file for model.norm.weight"),
        (index_without_map, "holds no weight_map"),
        (index_is_no_json, "is not JSON"),
        (truncated_file, "is no whole safetensors file (its tensors take "),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_checkpoints(make: Callable[..., Any], spoil: Callable[[Any], None], words: str) -> None:
    folder = make()
    spoil(folder)
    with pytest.raises(UserError) as caught:
        Checkpoint.open(folder.path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is no folder"):
        Checkpoint.open(tmp_path / "none")
    with pytest.raises(UserError, match=r"config\.json cannot be read \(No such file or directory\)"):
        Checkpoint.open(tmp_path)
