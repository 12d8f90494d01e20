"""`inspect`: what a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.terminal import facts, terminal
from ernie_export.readable import count, size

if TYPE_CHECKING:
    from ernie_export.checkpoint.inspect import CheckpointSummary

CheckpointFolder = Annotated[
    Path | None,
    typer.Argument(metavar="CHECKPOINT", help="Its folder; without one, the small one that comes along."),
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]


def folder_of(checkpoint: Path | None) -> Path:
    from ernie_export.checkpoint import embedded

    return checkpoint or embedded.folder()


def inspect(checkpoint: CheckpointFolder = None, json: Json = False) -> None:
    """Show what a checkpoint is: shape, size, tensors."""
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.checkpoint.inspect import summary

    found = summary(Checkpoint.open(folder_of(checkpoint)))
    if json:
        terminal.emit(found)
    else:
        terminal.show(facts(_rows(found)))


def _rows(found: CheckpointSummary) -> list[tuple[str, object]]:
    experts = f"{found.experts} of which {found.experts_per_token} are chosen, {found.shared_experts} shared"
    rows: list[tuple[str, object]] = [
        ("checkpoint", found.name),
        ("architecture", found.architecture),
        ("parameters", f"{count(found.parameters)}, {count(found.active_parameters)} active a token"),
        ("layers", f"{found.layers}, {found.moe_layers} of them MoE"),
        *([("experts", experts)] if found.moe_layers else []),
        (
            "attention",
            f"{found.attention_heads} heads, {found.key_value_heads} key-value heads of {found.head_dim}",
        ),
        ("hidden", found.hidden_size),
        ("vocabulary", f"{found.vocab_size:,}, head {'tied' if found.tied_head else 'of its own'}"),
        ("context", f"{found.context:,} tokens"),
        ("tensors", ", ".join(f"{number:,} {dtype}" for dtype, number in found.dtypes.items())),
        ("size", f"{size(found.bytes)} in {len(found.files)} file{'s' * (len(found.files) != 1)}"),
        *(("  " + part, size(bytes)) for part, bytes in found.bytes_by_part.items() if bytes),
    ]
    return rows + [("note", note) for note in found.notes]
