"""Small checkpoints, written by the safetensors library and by transformers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.layout import tensor_shapes

TINY: dict[str, Any] = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ERNIE_EXPORT_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    """config.json of a model of three layers, the first one dense; a copy for each test."""
    return copy.deepcopy(TINY)


@pytest.fixture
def published_config() -> Callable[[str], dict[str, Any]]:
    """config.json of the published shapes: "21B", "300B", "0.3B"."""
    folder = Path(__file__).parent / "configs"
    return lambda name: json.loads((folder / f"{name}.json").read_text())


class Folder:
    """A checkpoint folder in the making: `config` and `arrays` may be changed before `write`."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path = path
        self.config = config
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        rng = np.random.default_rng(7)
        self.arrays: dict[str, np.ndarray] = {
            name: rng.standard_normal(shape, dtype=np.float32)
            for name, shape in tensor_shapes(ErnieConfig.read(path)).items()
        }

    def write(self, shards: int = 1) -> Path:
        """One file, or so many with their index; every other tensor in every other shard."""
        (self.path / "config.json").write_text(json.dumps(self.config))
        if shards == 1:
            save_file(self.arrays, self.path / "model.safetensors", {"format": "pt"})
            return self.path
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: self.arrays[name] for name in sorted(self.arrays)[shard::shards]}
            save_file(part, self.path / file, {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (self.path / "model.safetensors.index.json").write_text(json.dumps(index))
        return self.path


@pytest.fixture
def make(tmp_path: Path, tiny_config: dict[str, Any]) -> Callable[..., Folder]:
    """make(name, field=value …) -> Folder of the tiny config with those fields."""
    return lambda name="model", **fields: Folder(tmp_path / name, tiny_config | fields)


@pytest.fixture
def with_holes(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A checkpoint of true size whose weights are holes on disk: bf16, the router fp32."""

    def write(config: dict[str, Any]) -> Path:
        folder = tmp_path / "holes"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in tensor_shapes(ErnieConfig.read(folder)).items():
            router = ".mlp.gate." in name or "moe_statics" in name
            begin, end = end, end + int(np.prod(shape)) * (4 if router else 2)
            header[name] = {
                "dtype": "F32" if router else "BF16",
                "shape": shape,
                "data_offsets": [begin, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        return folder

    return write


@pytest.fixture(scope="session")
def saved_by_transformers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny model, as transformers writes it in every form: folder by the name of the form."""
    import torch
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = {name: value for name, value in TINY.items() if name not in ("architectures", "rope_theta")}
    model: Any = Ernie4_5_MoeForCausalLM(Ernie4_5_MoeConfig(**config))
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter)  # new models have ones and zeros there, which hide mistakes
    root = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(root / "fp32")
    model.save_pretrained(root / "sharded", max_shard_size="60KB")
    model.save_pretrained(root / "merged", save_original_format=False)
    model.half().save_pretrained(root / "fp16")
    return {path.name: path for path in root.iterdir()}
