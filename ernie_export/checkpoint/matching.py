"""The tensors that the config asks for against the tensors that are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.layout import HEAD, Shapes, published_name, tensor_shapes
from ernie_export.checkpoint.safetensors import DTYPES, TensorInfo
from ernie_export.checkpoint.shards import first_few
from ernie_export.errors import UserError


@dataclass(frozen=True)
class Matched:
    """`tensors`: published name → place, in the order of the files; the rest is not part of the model."""

    tensors: dict[str, TensorInfo]
    multi_token_prediction: list[TensorInfo]
    tied_head: TensorInfo | None


def match(config: ErnieConfig, stored: dict[str, TensorInfo], folder: Path) -> Matched:
    """Every tensor that the config asks for, once; UserError names all that is missing, extra or wrong."""
    # transformers ignores the same names: the block that predicts the token after the next one.
    ahead = [info for name, info in stored.items() if "mtp" in name]
    found = _by_published_name([info for name, info in stored.items() if "mtp" not in name], folder)
    tied_head = found.pop(HEAD, None) if config.tie_word_embeddings else None
    merged = {i for i in config.moe_layers if f"model.layers.{i}.mlp.experts.gate_up_proj" in found}
    asked = tensor_shapes(config, merged)
    problems = _problems(asked, found)
    if problems:
        raise UserError(
            f"{folder} does not hold what its config.json asks for: {'; '.join(problems)}", _remedy(found)
        )
    in_order = sorted(found, key=lambda name: (found[name].path, found[name].offset))
    return Matched({name: found[name] for name in in_order}, ahead, tied_head)


def _by_published_name(infos: list[TensorInfo], folder: Path) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for info in infos:
        name = published_name(info.name)
        if name in found:
            raise UserError(
                f"{folder} holds one tensor under two names, {found[name].name} and {info.name}",
                "Keep one of them",
            )
        found[name] = info
    return found


def _problems(asked: Shapes, found: dict[str, TensorInfo]) -> list[str]:
    problems = []
    if missing := [name for name in asked if name not in found]:
        problems.append(f"{len(missing)} missing ({first_few(missing)})")
    if extra := [name for name in found if name not in asked]:
        problems.append(f"{len(extra)} not asked for ({first_few(extra)})")
    both = [name for name in asked if name in found]
    if shapes := [
        f"{name} has shape {list(found[name].shape)}, the config asks for {list(asked[name])}"
        for name in both
        if found[name].shape != asked[name]
    ]:
        problems.append(first_few(shapes))
    if types := [
        f"{name} is {found[name].dtype}, only {', '.join(DTYPES)} are read"
        for name in both
        if found[name].dtype not in DTYPES
    ]:
        problems.append(first_few(types))
    return problems


def _remedy(found: dict[str, TensorInfo]) -> str:
    if any("up_gate_proj" in name for name in found):
        return "This is the layout of PaddlePaddle: take the -PT release of the same model"
    return "Take config.json and the weights from one release"
