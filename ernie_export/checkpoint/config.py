"""What config.json says of an ERNIE-4.5 text model, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ernie_export.checkpoint.json_file import read_object
from ernie_export.errors import UserError

Architecture = Literal["Ernie4_5_MoeForCausalLM", "Ernie4_5ForCausalLM"]

# The spelling of the first releases of the 0.3B beside the present one: the same model.
ARCHITECTURES: dict[str, Architecture] = {
    "Ernie4_5_MoeForCausalLM": "Ernie4_5_MoeForCausalLM",
    "Ernie4_5ForCausalLM": "Ernie4_5ForCausalLM",
    "Ernie4_5_ForCausalLM": "Ernie4_5ForCausalLM",
}
MODELS = "Give an ERNIE-4.5 text model: 21B-A3B-PT, 300B-A47B-PT, 0.3B-PT or one of their siblings"
AS_PUBLISHED = "Take config.json as published with the weights"

# What a config may leave out has the value that transformers' ERNIE-4.5 configs give it (but no shared
# experts unless they are named: with the tensors at hand, a wrong guess would be found).
DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
EXPERT_DEFAULTS: dict[str, Any] = {
    "moe_num_shared_experts": 0,
    "moe_norm_min": 1e-12,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
}

# Bounds far above every model, so that a hostile config cannot ask for endless work.
Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
Layers = Annotated[int, Field(ge=1, le=1024)]
Count = Annotated[int, Field(ge=0, le=1024)]
Positive = Annotated[float, Field(gt=0)]


class ErnieConfig(BaseModel):
    """The shape and constants of the model; every `moe_` count is 0 in a dense one."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    architecture: Architecture
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    max_position_embeddings: Size
    rms_norm_eps: Positive
    rope_theta: Positive
    tie_word_embeddings: bool
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    moe_num_experts: Count = 0
    moe_k: Count = 0
    moe_intermediate_size: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    moe_num_shared_experts: Count = 0
    moe_norm_min: Positive = 1e-12
    moe_layer_start_index: Count = 0
    moe_layer_end_index: Count = 0
    moe_layer_interval: Annotated[int, Field(ge=1)] = 1

    @classmethod
    def read(cls, folder: Path) -> ErnieConfig:
        """The checked config of a checkpoint folder; UserError names the field that is missing or wrong."""
        path = folder / "config.json"
        raw = read_object(path)
        _refuse_other_models(raw, path)
        try:
            return cls.model_validate(_fields(raw))
        except ValidationError as error:
            raise UserError(f"{path}: {_first_problem(error)}", AS_PUBLISHED) from None
        except ValueError as error:
            raise UserError(f"{path}: {error}", AS_PUBLISHED) from None

    @model_validator(mode="after")
    def _consistent(self) -> ErnieConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, not a multiple of "
                f"num_key_value_heads, {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, but RoPE turns pairs: it must be even")
        if self.architecture == "Ernie4_5_MoeForCausalLM":
            self._consistent_experts()
        return self

    def _consistent_experts(self) -> None:
        if not self.moe_num_experts:
            raise ValueError("moe_num_experts is 0, but the architecture is a mixture of experts")
        if not 1 <= self.moe_k <= self.moe_num_experts:
            raise ValueError(
                f"moe_k is {self.moe_k}, but a token can choose 1 to {self.moe_num_experts} experts"
            )
        if not self.moe_intermediate_size:
            raise ValueError("moe_intermediate_size is 0")
        if not self.moe_layers:
            raise ValueError("moe_layer_start_index, _end_index and _interval leave no layer with experts")

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the layer has experts (the rule of transformers' Ernie4_5_MoeDecoderLayer)."""
        return (
            self.moe_num_experts > 0
            and (layer + 1) % self.moe_layer_interval == 0
            and self.moe_layer_start_index <= layer <= self.moe_layer_end_index
        )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.num_hidden_layers) if self.is_moe_layer(i))

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the one MLP that the shared experts form; 0 without them."""
        return self.moe_intermediate_size * self.moe_num_shared_experts


def _refuse_other_models(raw: dict[str, Any], path: Path) -> None:
    """UserError when the file describes something else than a plain ERNIE-4.5 text model."""
    named = raw.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise UserError(f"{path} names no architecture", MODELS)
    if "VL" in named[0]:
        raise UserError(f"{path}: {named[0]} is a vision-language model", MODELS)
    if named[0] not in ARCHITECTURES:
        raise UserError(f"{path}: {named[0]} is not an ERNIE-4.5 text model", MODELS)
    if raw.get("use_bias"):
        raise UserError(f"{path}: use_bias is true, but no published ERNIE-4.5 has biases", MODELS)
    if raw.get("quantization_config"):
        raise UserError(f"{path}: the weights are quantized (quantization_config)", "Give the bf16 release")
    for field, only in (("hidden_act", "silu"), ("moe_gate_act", "softmax")):
        if raw.get(field) not in (None, only):
            raise UserError(f"{path}: {field} is {_shown(raw[field])}, ERNIE-4.5 has {only}", MODELS)


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    """ErnieConfig's fields from the published ones; ValueError when they cannot be told."""
    architecture = ARCHITECTURES[raw["architectures"][0]]
    fields = {name: raw[name] for name in ErnieConfig.model_fields if raw.get(name) is not None}
    fields = DEFAULTS | fields | {"architecture": architecture, "rope_theta": _rope_theta(raw)}
    if "num_attention_heads" in fields:
        fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
        if "head_dim" not in fields:
            fields["head_dim"] = _head_dim(raw)
    for name in ("bos_token_id", "pad_token_id"):
        fields[name] = raw.get(name, DEFAULTS[name])
    end = raw.get("eos_token_id", 2)
    fields["eos_token_id"] = () if end is None else tuple(end) if isinstance(end, list) else (end,)
    dense = {name: value for name, value in fields.items() if not name.startswith("moe_")}
    return dense | _expert_fields(fields) if architecture == "Ernie4_5_MoeForCausalLM" else dense


def _expert_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The `moe_` fields, unwrapped where a config writes one as a list with an entry a modality."""
    given = {name: value for name, value in fields.items() if name.startswith("moe_")}
    for name, value in given.items():
        if isinstance(value, list) and len(value) == 1:
            given[name] = value[0]
    for name in ("moe_num_experts", "moe_k", "moe_intermediate_size"):
        if name not in given:
            raise ValueError(f"{name} is missing")
    given = EXPERT_DEFAULTS | given
    layers = fields.get("num_hidden_layers")
    if given["moe_layer_end_index"] == -1 and isinstance(layers, int):
        given["moe_layer_end_index"] = layers - 1
    return given


def _head_dim(raw: dict[str, Any]) -> Any:
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        return 1  # the fields themselves are found to be wrong
    if hidden % heads:
        raise ValueError(f"hidden_size is {hidden}, not a multiple of num_attention_heads, {heads}")
    return hidden // heads


def _rope_theta(raw: dict[str, Any]) -> Any:
    """The one theta, from the top level (older files) or from `rope_parameters` (transformers 5)."""
    nested: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        value = raw.get(name) or {}
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {_shown(value)}, not an object")
        kind = value.get("rope_type", value.get("type", "default"))
        if kind != "default":
            raise ValueError(f"{name} asks for {_shown(kind)} scaling; ERNIE-4.5 was published without any")
        nested |= value
    given = [theta for theta in (raw.get("rope_theta"), nested.get("rope_theta")) if theta is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError(f"rope_theta is {_shown(given[0])}, but rope_parameters says {_shown(given[1])}")
    return given[0] if given else 500000.0


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{name} is missing"
    message = problem["msg"]
    return f"{name} is {_shown(problem['input'])}: {message[0].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
