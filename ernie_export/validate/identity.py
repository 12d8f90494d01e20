"""That it is the same thing on both sides, before any number is compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.engine.info import EngineInfo
    from ernie_export.reference.layers import LayeredReference

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
REMEDY = "Name the checkpoint that the bundle was built from, or build it again from this one."


def require_same_tokenizer(folder: Path, checkpoint: Path) -> None:
    """Raises UserError unless each tokenizer file of the checkpoint is in the bundle, byte for byte."""
    for name in TOKENIZER_FILES:
        ours, theirs = folder / name, checkpoint / name
        if ours.is_file() != theirs.is_file():
            where = "checkpoint" if theirs.is_file() else "bundle"
            raise UserError(f"Only the {where} has a {name}", REMEDY)
        if ours.is_file() and ours.read_bytes() != theirs.read_bytes():
            raise UserError(f"{name} is not the checkpoint's", REMEDY)


def require_same_shape(info: EngineInfo, reference: LayeredReference) -> None:
    """Raises UserError unless engine and reference have the same vocabulary and the same MoE layers."""
    if info.vocab_size != reference.vocab_size:
        raise UserError(
            f"The engine knows {info.vocab_size} tokens, the checkpoint {reference.vocab_size}", REMEDY
        )
    if tuple(info.moe_layers) != reference.moe_layers:
        raise UserError(
            f"The engine has experts in the layers {list(info.moe_layers)}, "
            f"the checkpoint in {list(reference.moe_layers)}",
            REMEDY,
        )
