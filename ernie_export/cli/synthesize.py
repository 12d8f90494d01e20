"""`synthesize`: a checkpoint of any shape, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ernie_export.cli.terminal import facts, terminal
from ernie_export.readable import size


def shape_names() -> list[str]:
    from ernie_export.checkpoint import shapes

    return shapes.names()


Like = Annotated[
    str,
    typer.Option(
        metavar="SHAPE",
        help="nano, 0.3b, 21b, 300b, or a folder with a config.json.",
        autocompletion=shape_names,
    ),
]


def synthesize(
    *,
    like: Like,
    layers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1024, help="How many layers; as many as published if not given."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="The same seed gives the same bytes.")] = 0,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Zeros that take no disk, for plans and tests of shapes.")
    ] = False,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
) -> None:
    """Write a checkpoint with random weights, of the size and layout of a published one.

    It is for measuring speed and memory: nothing about quality can be said of random weights.
    """
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.checkpoint.synthetic import synthesize

    with terminal.progress() as progress:
        synthesize(like, output, progress, layers, seed, sparse)
    made = Checkpoint.open(output)
    rows: list[tuple[str, object]] = [
        ("checkpoint", output),
        ("layers", made.config.num_hidden_layers),
        ("size", f"{size(sum(made.files.values()))} in {len(made.files)} file{'s' * (len(made.files) != 1)}"),
        *(("note", note) for note in made.notes),
    ]
    terminal.show(facts(rows))
