"""What a checkpoint is, in numbers a person can check against a model card."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.config import Architecture, ErnieConfig
from ernie_export.checkpoint.layout import EMBEDDING, PARTS, Part, part_of, tensor_shapes


class CheckpointSummary(BaseModel):
    """What `ernie-export inspect --json` prints. Counts of parameters and tensors; sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    name: str
    architecture: Architecture
    parameters: int
    active_parameters: int
    layers: int
    moe_layers: int
    experts: int
    experts_per_token: int
    shared_experts: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context: int
    tied_head: bool
    dtypes: dict[str, int]
    bytes: int
    bytes_by_part: dict[Part, int]
    files: dict[str, int]
    notes: list[str]


def summary(checkpoint: Checkpoint) -> CheckpointSummary:
    """Read from the config and the headers alone: quick whatever the size."""
    config = checkpoint.config
    by_part = dict.fromkeys(PARTS, 0)
    for name, info in checkpoint.tensors.items():
        by_part[part_of(name)] += info.nbytes
    return CheckpointSummary(
        name=checkpoint.path.resolve().name,
        architecture=config.architecture,
        parameters=parameters(config),
        active_parameters=active_parameters(config),
        layers=config.num_hidden_layers,
        moe_layers=len(config.moe_layers),
        experts=config.moe_num_experts,
        experts_per_token=config.moe_k,
        shared_experts=config.moe_num_shared_experts,
        attention_heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        tied_head=config.tie_word_embeddings,
        dtypes=dict(Counter(info.dtype for info in checkpoint.tensors.values())),
        bytes=sum(by_part.values()),
        bytes_by_part=by_part,
        files=checkpoint.files,
        notes=checkpoint.notes,
    )


def parameters(config: ErnieConfig) -> int:
    """Parameters of the model; a tied head counts once."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def active_parameters(config: ErnieConfig) -> int:
    """Parameters that one token is multiplied with: the chosen experts only, and the head once."""
    shapes = tensor_shapes(config)
    experts = sum(math.prod(shape) for name, shape in shapes.items() if part_of(name) == "experts")
    idle = experts - experts * config.moe_k // max(config.moe_num_experts, 1)
    looked_up = 0 if config.tie_word_embeddings else math.prod(shapes[EMBEDDING])
    return parameters(config) - idle - looked_up
