"""How many bytes a token reads, and so how many tokens a second the memory's bandwidth allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ernie_export.graph.weights import form_of
from ernie_export.plan.memory import initializers, kv_bytes, runs_all_experts
from ernie_export.plan.setting import Setting
from ernie_export.plan.weights import PARTS, Part, part_of, shares_head, weight_files

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.target import Target


class Traffic(BaseModel):
    """Of one step of decode: each row of the batch by one token. Bytes."""

    model_config = ConfigDict(frozen=True)

    batch: int
    experts_read: float
    """Experts of a MoE layer that some row chose; the layers' mean."""
    weights: dict[Part, int]
    kv_cache: int
    """At a full context; nothing at an empty one."""
    bytes: int
    """The weights, without the cache."""
    tokens_per_second: float | None
    """At an empty context, of all rows together; None where the bandwidth is not known."""
    tokens_per_second_at_full_context: float | None


def traffic(config: ErnieConfig, target: Target, setting: Setting, bandwidth: float | None) -> Traffic:
    """`bandwidth` in bytes a second."""
    read_in = {layer: experts_read(config, target, setting, layer) for layer in config.moe_layers}
    weights: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
    for stored in initializers(weight_files(config, setting.parts, setting.context)):
        part, size = part_of(stored.name), float(stored.nbytes)
        if as_fp32(target, setting, stored.name):
            size *= 2
        if part == "embedding" and shares_head(config, setting.parts):
            weights["head"] += size
        if part in ("embedding", "rope"):  # a row for each token
            size *= setting.batch / stored.shape[0]
        elif part == "experts":
            size *= read_in[int(stored.name.split(".")[1])] / config.moe_num_experts
        weights[part] += size
    read, cache = sum(weights.values()), setting.batch * setting.context * kv_bytes(config, target, setting)
    return Traffic(
        batch=setting.batch,
        experts_read=sum(read_in.values()) / len(read_in) if read_in else 0.0,
        weights={part: round(size) for part, size in weights.items()},
        kv_cache=cache,
        bytes=round(read),
        tokens_per_second=setting.batch * bandwidth / read if bandwidth else None,
        tokens_per_second_at_full_context=setting.batch * bandwidth / (read + cache) if bandwidth else None,
    )


def experts_read(config: ErnieConfig, target: Target, setting: Setting, layer: int) -> float:
    """Distinct experts that B rows choose, expected for independent and even choices: E·(1 − (1 − k/E)^B)."""
    experts = config.moe_num_experts
    if target.runtime == "onnxruntime-cpu" and runs_all_experts(setting.parts, layer):
        return float(experts)
    return float(experts * (1 - (1 - config.moe_k / experts) ** setting.batch))


def as_fp32(target: Target, setting: Setting, name: str) -> bool:
    """ONNX Runtime multiplies on the CPU with fp32 copies of fp16 matrices."""
    form = form_of(name, setting.parts)
    return target.runtime == "onnxruntime-cpu" and form is not None and form.format == "fp16"
