"""The model's config, formats and weights without pydantic, safetensors or numba, which a bare machine lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ernie_export.model.ernie import Ernie
from tests.gpu import made

CHECKPOINTS = Path(__file__).parents[2] / "ernie_export" / "checkpoint"
NANO = CHECKPOINTS / "ernie-nano"
LARGE = CHECKPOINTS / "published" / "21b" / "config.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Config:
    """What `model.ernie` reads of an ErnieConfig; a test holds it to that."""

    def __init__(self, path: Path, **changes: Any):
        self.__dict__.update(json.loads(path.read_text()) | changes)
        self.head_dim = self.__dict__.get("head_dim") or self.hidden_size // self.num_attention_heads
        self.shared_intermediate_size = self.moe_num_shared_experts * self.moe_intermediate_size
        parameters = self.__dict__.get("rope_parameters") or {}
        self.rope_theta = parameters.get("rope_theta") or self.__dict__["rope_theta"]
        self.moe_norm_min = self.__dict__.get("moe_norm_min", 1e-12)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"config.json has no {name}")

    def is_moe_layer(self, layer: int) -> bool:
        begin, end = self.moe_layer_start_index, self.moe_layer_end_index
        return begin <= layer <= end and (layer + 1) % self.moe_layer_interval == 0


class Form:
    def __init__(self, format: str, block_size: int = 128):
        self.format, self.block_size = format, block_size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Form) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Parts:
    """As recipes/int4.toml has it; a test holds it to that."""

    attention = head = embedding = Form("int8")
    experts = shared = dense = Form("int4")

    def of(self, part: str, layer: int | None) -> Form:
        return getattr(self, part)


def rope_tables(config: Config, context: int) -> dict[str, Tensor]:
    exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
    angles = torch.arange(context)[:, None] * (1 / config.rope_theta**exponents)
    return {"rope.cos": angles.cos(), "rope.sin": angles.sin()}


def checkpoint(path: Path) -> dict[str, Tensor]:
    """A safetensors file (https://github.com/huggingface/safetensors#format): fp32 by the published names."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        tensors[name] = data[begin:end].clone().view(DTYPES[about["dtype"]]).view(about["shape"]).float()
    return tensors


def quantized(weight: Tensor, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """[…, K] → codes and scales (quantize/formats.py) by rounding to nearest, the scale that of the largest."""
    half = 2 ** (bits - 1)
    blocks = weight.unflatten(-1, (-1, block_size))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scales = (largest / -half).half()
    inverse = torch.where(scales == 0, 0, 1 / scales.float())
    codes = ((blocks * inverse).round().clamp(-half, half - 1) + half).to(torch.uint8).flatten(-2)
    return codes if bits == 8 else codes[..., 0::2] | codes[..., 1::2] << 4, scales.squeeze(-1)


def dequantized(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """[…, K] float32."""
    flat = codes if bits == 8 else torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    blocks = flat.float().unflatten(-1, (scales.shape[-1], -1)) - 2 ** (bits - 1)
    return (blocks * scales.float()[..., None]).flatten(-2)


#: Names below a layer: ours → the checkpoint's (graph/weights.py has the whole of it).
NAMES = {
    "input_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "router.weight": "mlp.gate.weight",
    "router.bias": "mlp.moe_statics.e_score_correction_bias",
    **{f"attention.{x}.": f"self_attn.{x}_proj." for x in "qkvo"},
    **{f"mlp.{x}.": f"mlp.{x}_proj." for x in ("gate", "up", "down")},
    **{f"shared.{x}.": f"mlp.shared_experts.{x}_proj." for x in ("gate", "up", "down")},
}


def of_checkpoint(name: str, tensors: dict[str, Tensor], config: Config) -> Tensor:
    """What a buffer of the model is made of, fp32, in its own shape."""
    if not name.startswith("layers."):
        return tensors[
            {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}[name]
        ]
    _, layer, below = name.split(".", 2)
    prefix = f"model.layers.{layer}."
    if below.startswith("experts."):
        each = f"{prefix}mlp.experts.%d.%s_proj.weight"
        numbers = range(config.moe_num_experts)
        if below == "experts.down":
            return torch.stack([tensors[each % (number, "down")] for number in numbers])
        gate, up = (
            torch.stack([tensors[each % (number, kind)] for number in numbers]) for kind in ("gate", "up")
        )
        return torch.stack((gate, up), dim=2).flatten(1, 2)
    ours = next(ours for ours in NAMES if below.startswith(ours))
    return tensors[prefix + below.replace(ours, NAMES[ours])]


def nano_weights(context: int) -> tuple[Config, dict[str, Tensor]]:
    """Every buffer of the model of ernie-nano, as recipe int4 stores it."""
    config, tensors = Config(NANO / "config.json"), checkpoint(NANO / "model.safetensors")
    weights = rope_tables(config, context)
    for name, bits in stored_bits(Ernie(config, Parts(), context)).items():
        weight = of_checkpoint(name, tensors, config)
        if bits:
            weights[name], weights[scales_of(name)] = quantized(weight, bits, 128)
        else:
            weights[name] = weight.reshape(-1) if name.endswith("bias") else weight
    return config, weights


def stored_bits(model: Ernie) -> dict[str, int]:
    """Buffer → its bits, 0 of floats, without the scales and what is computed."""
    return {
        name: model.get_submodule(name.rpartition(".")[0]).bits if buffer.dtype == torch.uint8 else 0
        for name, buffer in model.named_buffers()
        if not name.endswith("scales") and not name.startswith("rope.")
    }


def scales_of(name: str) -> str:
    return f"{name.removesuffix('weight')}scales" if name.endswith(".weight") else f"{name}_scales"


def random_weights(config: Config, context: int, random: torch.Generator) -> dict[str, Tensor]:
    """Every buffer of a model of any size, made where it will lie."""
    model = Ernie(config, Parts(), context)
    weights = {name: table.to(random.device) for name, table in rope_tables(config, context).items()}
    for name, bits in stored_bits(model).items():
        shape = model.get_buffer(name).shape
        if bits:
            matrix = made.packed(random, (*shape[:-1], shape[-1] * 8 // bits), bits, 128)
            weights[name], weights[scales_of(name)] = matrix.data, matrix.scales
        elif name.endswith("norm.weight"):
            weights[name] = torch.ones(shape, device=random.device)
        else:
            spread = 0.02 if name.endswith("bias") else shape[-1] ** -0.5
            weights[name] = torch.randn(shape, generator=random, device=random.device) * spread
    return weights
