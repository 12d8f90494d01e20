"""Weights, indices and configs that are broken or hostile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.bad_input.attack import INDEX, WEIGHTS, Arguments, Attacks, Place

FILES = Attacks("Weight files")
SHARDS = Attacks("Shards and their index")
CONFIGS = Attacks("config.json")

Header = dict[str, Any]
NORM = "model.norm.weight"


def with_bytes(place: Place, data: bytes) -> Arguments:
    folder = place.tiny().write()
    (folder / WEIGHTS).write_bytes(data)
    return ["inspect", folder]


def with_header(place: Place, header: str | bytes, body: int = 256) -> Arguments:
    """A file with this header and so many bytes of tensors."""
    text = header if isinstance(header, bytes) else header.encode()
    return with_bytes(place, len(text).to_bytes(8, "little") + text + bytes(body))


def with_entry(place: Place, body: int = 256, **fields: Any) -> Arguments:
    """A header of one tensor, which these fields change."""
    entry = {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]} | fields
    return with_header(place, json.dumps({NORM: entry}), body)


def with_array(place: Place, name: str, array: np.ndarray[Any, Any]) -> Arguments:
    """A checkpoint with one tensor more, or another one of that name."""
    folder = place.tiny()
    folder.arrays[name] = array
    return ["inspect", folder.write()]


@FILES.add("no such folder")
def _(place: Place) -> Arguments:
    return ["inspect", place.root / "missing"]


@FILES.add("a file in place of the folder")
def _(place: Place) -> Arguments:
    return ["inspect", place.tiny().write() / WEIGHTS]


@FILES.add("config.json alone, no weights")
def _(place: Place) -> Arguments:
    return ["inspect", place.tiny().path]


@FILES.add("weights as pickle")
def _(place: Place) -> Arguments:
    folder = place.tiny().path
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    return ["inspect", folder]


@FILES.add("a Git LFS pointer")
def _(place: Place) -> Arguments:
    return with_bytes(place, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


@FILES.add("an empty file")
def _(place: Place) -> Arguments:
    return with_bytes(place, b"")


@FILES.add("a folder named model.safetensors")
def _(place: Place) -> Arguments:
    folder = place.tiny().path
    (folder / WEIGHTS).mkdir()
    return ["inspect", folder]


@FILES.add("no read permission", under=("unprivileged",))
def _(place: Place) -> Arguments:
    folder = place.tiny().write()
    os.chmod(folder / WEIGHTS, 0)
    return ["inspect", folder]


@FILES.add("the header's length cut off")
def _(place: Place) -> Arguments:
    return with_bytes(place, b"\x10\x00\x00")


@FILES.add("a header length of 2^63")
def _(place: Place) -> Arguments:
    return with_bytes(place, (1 << 63).to_bytes(8, "little") + b"{}")


@FILES.add("a header longer than the file")
def _(place: Place) -> Arguments:
    return with_bytes(place, (4096).to_bytes(8, "little") + b'{"a":')


@FILES.add("a header that is not JSON")
def _(place: Place) -> Arguments:
    return with_header(place, "{model.norm.weight: }")


@FILES.add("a header that is not UTF-8")
def _(place: Place) -> Arguments:
    return with_header(place, b'{"\xff\xfe": 1}')


@FILES.add("a header that is a list")
def _(place: Place) -> Arguments:
    return with_header(place, "[1, 2]")


@FILES.add("a header nested 10,000 deep")
def _(place: Place) -> Arguments:
    return with_header(place, '{"a":' * 10_000 + "1" + "}" * 10_000)


@FILES.add("one tensor named twice in a header")
def _(place: Place) -> Arguments:
    entry = '"model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}'
    return with_header(place, "{" + entry + ", " + entry + "}")


@FILES.add("tensors that overlap")
def _(place: Place) -> Arguments:
    entry = {"dtype": "F32", "shape": [64]}
    header = {"a": entry | {"data_offsets": [0, 256]}, "b": entry | {"data_offsets": [128, 384]}}
    return with_header(place, json.dumps(header), 384)


@FILES.add("a tensor behind the end of the file")
def _(place: Place) -> Arguments:
    return with_entry(place, data_offsets=[1 << 40, (1 << 40) + 256])


@FILES.add("a hole between two tensors")
def _(place: Place) -> Arguments:
    entry = {"dtype": "F32", "shape": [64]}
    header = {"a": entry | {"data_offsets": [0, 256]}, "b": entry | {"data_offsets": [512, 768]}}
    return with_header(place, json.dumps(header), 768)


@FILES.add("offsets that run backwards")
def _(place: Place) -> Arguments:
    return with_entry(place, data_offsets=[256, 0])


@FILES.add("an offset below zero")
def _(place: Place) -> Arguments:
    return with_entry(place, data_offsets=[-256, 0])


@FILES.add("a shape that does not fill its bytes")
def _(place: Place) -> Arguments:
    return with_entry(place, shape=[63])


@FILES.add("a shape of 2^80 numbers")
def _(place: Place) -> Arguments:
    return with_entry(place, shape=[1 << 40, 1 << 40])


@FILES.add("a type that does not exist")
def _(place: Place) -> Arguments:
    return with_entry(place, dtype="Q4")


@FILES.add("a header without offsets")
def _(place: Place) -> Arguments:
    return with_header(place, json.dumps({NORM: {"dtype": "F32", "shape": [64]}}))


@FILES.add("the last byte missing")
def _(place: Place) -> Arguments:
    data = (place.tiny().write() / WEIGHTS).read_bytes()
    (place.root / "model" / WEIGHTS).write_bytes(data[:-1])
    return ["inspect", place.root / "model"]


@FILES.add("bytes behind the last tensor")
def _(place: Place) -> Arguments:
    folder = place.tiny().write()
    with (folder / WEIGHTS).open("ab") as file:
        file.write(bytes(64))
    return ["inspect", folder]


@FILES.add("a shape wrong by one")
def _(place: Place) -> Arguments:
    return with_array(place, NORM, np.ones(63, np.float32))


@FILES.add("a matrix that lies on its side")
def _(place: Place) -> Arguments:
    return with_array(place, "model.layers.0.mlp.down_proj.weight", np.ones((48, 64), np.float32))


@FILES.add("a tensor of another type")
def _(place: Place) -> Arguments:
    return with_array(place, NORM, np.ones(64, np.int64))


@FILES.add("a tensor in 8-bit floats")
def _(place: Place) -> Arguments:
    return with_array(place, NORM, np.ones(64, ml_dtypes.float8_e4m3fn))


@FILES.add("a tensor missing")
def _(place: Place) -> Arguments:
    folder = place.tiny()
    del folder.arrays["model.layers.1.mlp.experts.3.up_proj.weight"]
    return ["inspect", folder.write()]


@FILES.add("a tensor that nobody asked for")
def _(place: Place) -> Arguments:
    return with_array(place, "model.layers.3.input_layernorm.weight", np.ones(64, np.float32))


@FILES.add("a tensor with an escape sequence in its name")
def _(place: Place) -> Arguments:
    return with_array(place, "model\x1b[2J\nerror: all is well", np.ones(4, np.float32))


@FILES.add("one tensor under two names")
def _(place: Place) -> Arguments:
    bias = np.ones((1, 4), np.float32)
    return with_array(place, "model.layers.1.mlp.gate.moe_statics.e_score_correction_bias", bias)


@FILES.add("experts in the layout of PaddlePaddle")
def _(place: Place) -> Arguments:
    return with_array(
        place, "model.layers.1.mlp.experts.0.up_gate_proj.weight", np.ones((64, 64), np.float32)
    )


@FILES.add("a tied head that is not the embedding")
def _(place: Place) -> Arguments:
    return with_array(place, "lm_head.weight", np.ones((96, 64), np.float32))


def with_number(place: Place, name: str, number: float) -> Arguments:
    """ernie-nano with one number of one tensor replaced."""
    folder = place.nano()
    arrays = load_file(folder / WEIGHTS)
    changed = arrays[name].copy()
    changed.flat[7] = number
    (folder / WEIGHTS).unlink()
    save_file(arrays | {name: changed}, folder / WEIGHTS, {"format": "pt"})
    return place.build(folder)


@FILES.add("NaN in a norm", leaves_partial=True)
def _(place: Place) -> Arguments:
    return with_number(place, NORM, np.nan)


@FILES.add("NaN in the router", leaves_partial=True)
def _(place: Place) -> Arguments:
    return with_number(place, "model.layers.3.mlp.gate.weight", np.nan)


@FILES.add("infinity in an expert", leaves_partial=True)
def _(place: Place) -> Arguments:
    return with_number(place, "model.layers.5.mlp.experts.2.up_proj.weight", np.inf)


@FILES.add("a weight too large for fp16", leaves_partial=True)
def _(place: Place) -> Arguments:
    return [*with_number(place, "model.embed_tokens.weight", 1e5), "--recipe", "fp16"]


@FILES.add(
    "400 GB of weights, for which a process has no address space", 1, under=("prlimit", "--as=8000000000")
)
def _(place: Place) -> Arguments:
    folder = place.tiny().path
    header = json.dumps(
        {NORM: {"dtype": "F32", "shape": [100_000_000_000], "data_offsets": [0, 400_000_000_000]}}
    )
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 400_000_000_000)
    return ["inspect", folder]


def sharded(place: Place) -> tuple[Path, Header]:
    folder = place.tiny().write(shards=3)
    return folder, json.loads((folder / INDEX).read_bytes())


def with_weight_map(place: Place, weight_map: Any) -> Arguments:
    folder, index = sharded(place)
    changed = index["weight_map"] | weight_map if isinstance(weight_map, dict) else weight_map
    (folder / INDEX).write_text(json.dumps(index | {"weight_map": changed}))
    return ["inspect", folder]


@SHARDS.add("a shard missing")
def _(place: Place) -> Arguments:
    folder, _ = sharded(place)
    (folder / "model-00002-of-00003.safetensors").unlink()
    return ["inspect", folder]


@SHARDS.add("a shard that is a link to nothing")
def _(place: Place) -> Arguments:
    folder, _ = sharded(place)
    (folder / "model-00003-of-00003.safetensors").unlink()
    (folder / "model-00003-of-00003.safetensors").symlink_to("../blobs/gone")
    return ["inspect", folder]


@SHARDS.add("a file that leads out of the folder")
def _(place: Place) -> Arguments:
    return with_weight_map(place, {NORM: "../../etc/passwd"})


@SHARDS.add("a file with an absolute path")
def _(place: Place) -> Arguments:
    return with_weight_map(place, {NORM: "/etc/passwd"})


@SHARDS.add("a number in place of a file")
def _(place: Place) -> Arguments:
    return with_weight_map(place, {NORM: 7})


@SHARDS.add("a file name with a NUL in it")
def _(place: Place) -> Arguments:
    return with_weight_map(place, {NORM: "model\0.safetensors"})


@SHARDS.add("a file name of 5,000 characters")
def _(place: Place) -> Arguments:
    return with_weight_map(place, {NORM: "m" * 5000})


@SHARDS.add("a tensor that is in no shard")
def _(place: Place) -> Arguments:
    return with_weight_map(place, {"model.layers.9.mlp.gate.weight": "model-00001-of-00003.safetensors"})


@SHARDS.add("a tensor promised in another shard")
def _(place: Place) -> Arguments:
    _, index = sharded(place)
    for path in (place.root / "model").iterdir():
        path.unlink()
    (place.root / "model").rmdir()
    others = set(index["weight_map"].values()) - {index["weight_map"][NORM]}
    return with_weight_map(place, {NORM: min(others)})


@SHARDS.add("no weight_map")
def _(place: Place) -> Arguments:
    return with_weight_map(place, None)


@SHARDS.add("an index that is not JSON")
def _(place: Place) -> Arguments:
    folder, _ = sharded(place)
    (folder / INDEX).write_text("weight_map = {}")
    return ["inspect", folder]


@SHARDS.add("one tensor in two shards")
def _(place: Place) -> Arguments:
    folder, _ = sharded(place)
    for name in ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"):
        arrays = load_file(folder / name)
        save_file(arrays | {NORM: np.ones(64, np.float32)}, folder / name, {"format": "pt"})
    return ["inspect", folder]


def with_config(place: Place, data: bytes | str) -> Arguments:
    folder = place.tiny().write()
    (folder / "config.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    return ["inspect", folder]


@CONFIGS.add("no config.json")
def _(place: Place) -> Arguments:
    folder = place.tiny().write()
    (folder / "config.json").unlink()
    return ["inspect", folder]


@CONFIGS.add("a pipe that nobody writes to")
def _(place: Place) -> Arguments:
    folder = place.tiny().write()
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    return ["inspect", folder]


@CONFIGS.add("a link to itself")
def _(place: Place) -> Arguments:
    folder = place.tiny().write()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    return ["inspect", folder]


@CONFIGS.add("a config.json of 10 GB")
def _(place: Place) -> Arguments:
    folder = place.tiny().write()
    os.truncate(folder / "config.json", 10_000_000_000)
    return ["inspect", folder]


BYTES: list[tuple[str, bytes | str]] = [
    ("not JSON", "hidden_size: 64"),
    ("not UTF-8", b'{"architectures": ["\xff"]}'),
    ("a list", "[]"),
    ("nested 100,000 deep", "[" * 100_000),
    ("a number of 10,000 digits", '{"hidden_size": ' + "9" * 10_000 + "}"),
    ("cut off in the middle", '{"architectures": ["Ernie4_5_MoeForCausalLM"], "vocab_'),
]
for name, data in BYTES:
    CONFIGS.add(name)(lambda place, data=data: with_config(place, data))

FIELDS: list[tuple[str, Header]] = [
    ("no architecture", {"architectures": None}),
    ("another model", {"architectures": ["LlamaForCausalLM"]}),
    ("a vision-language model", {"architectures": ["Ernie4_5_VLMoeForConditionalGeneration"]}),
    ("biases", {"use_bias": True}),
    ("weights that are quantized already", {"quantization_config": {"bits": 4}}),
    ("another activation", {"hidden_act": "gelu"}),
    ("another router", {"moe_gate_act": "sigmoid"}),
    ("no hidden_size", {"hidden_size": None}),
    ("a size as text", {"hidden_size": "64"}),
    ("a size below zero", {"vocab_size": -96}),
    ("zero experts", {"moe_num_experts": 0}),
    ("more experts chosen than there are", {"moe_k": 5}),
    ("no expert chosen", {"moe_k": 0}),
    ("experts of no width", {"moe_intermediate_size": 0}),
    ("no layer with experts", {"moe_layer_start_index": 3}),
    ("10^9 layers", {"num_hidden_layers": 10**9}),
    ("no layer", {"num_hidden_layers": 0}),
    ("a hidden size that the heads do not divide", {"num_attention_heads": 6}),
    ("heads that the key-value heads do not divide", {"num_key_value_heads": 3}),
    ("heads of odd width", {"head_dim": 15}),
    ("a context of 0", {"max_position_embeddings": 0}),
    ("RoPE with scaling", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("two values of theta", {"rope_parameters": {"rope_theta": 10000.0}}),
    ("a theta of NaN", {"rope_theta": float("nan")}),
    ("an epsilon of infinity", {"rms_norm_eps": float("inf")}),
    ("an end token that is no number", {"eos_token_id": "</s>"}),
    ("experts that differ by modality", {"moe_num_experts": [4, 4]}),
    ("one expert more than there are", {"moe_num_experts": 5}),
    ("one layer more than there are", {"num_hidden_layers": 4}),
    ("a head of its own that is not there", {"tie_word_embeddings": False}),
]
for name, fields in FIELDS:
    CONFIGS.add(name)(lambda place, fields=fields: ["inspect", place.tiny_with(**fields)])
