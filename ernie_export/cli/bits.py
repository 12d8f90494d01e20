"""`bits`: which layers and parts get 8 bits and which 4, for a memory budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.inspect import CheckpointFolder, Json, folder_of
from ernie_export.cli.plan import recipe_names, target_names
from ernie_export.cli.terminal import facts, table, terminal
from ernie_export.errors import UserError
from ernie_export.readable import size

if TYPE_CHECKING:
    from ernie_export.bits import Choice


def bits(
    *,
    checkpoint: CheckpointFolder = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="B",
            help="Memory for the engine, `8 GB`, or a target's name for all that it has; the recipe's.",
            autocompletion=target_names,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="RECIPE", help="The recipe to write, a TOML file.")],
    target: Annotated[
        str,
        typer.Option(metavar="T", help="As what memory is counted.", autocompletion=target_names),
    ] = "cpu",
    recipe: Annotated[
        str,
        typer.Option(
            metavar="R",
            help="What to start from: its integer formats are chosen anew, all else stays.",
            autocompletion=recipe_names,
        ),
    ] = "int4",
    context: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Most tokens of a row; the recipe's or the checkpoint's most."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Rows at once.")] = 1,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What to measure on; a text comes along.")
    ] = None,
    json: Json = False,
) -> None:
    """Choose the bits of each layer and part for a memory budget, and write them as a recipe.

    How much each suffers from fewer bits is measured on transformers' own model, one layer in memory at a
    time; what was measured is remembered, so that another budget costs nothing.
    """
    from ernie_export import atomic
    from ernie_export.recipe import Recipe
    from ernie_export.target import Target

    purpose, how = Target.find(target), Recipe.find(recipe)
    if not (room := budget or how.budget):
        raise UserError("No budget is given", "Add --budget 8GB, or a target's name: --budget l4.")
    if output.suffix != ".toml" or output.is_dir():
        raise UserError(f"{output} is no place for a recipe", "Name a file that ends in .toml.")
    if not output.absolute().parent.is_dir():
        raise UserError(
            f"There is no folder {output.absolute().parent}", "Make it, or name another --output."
        )
    from ernie_export.bits import choose

    with terminal.progress() as progress:
        choice = choose(folder_of(checkpoint), purpose, how, room, progress, text, context, batch)
    atomic.write(output, choice.recipe.to_toml().encode())
    if json:
        terminal.emit(choice)
    else:
        _show(choice, output)


def _show(choice: Choice, output: Path) -> None:
    spare = f"{size(choice.needed)} of {size(choice.budget)} on {choice.target}"
    measured = choice.sensitivity
    terminal.show(
        facts(
            [
                ("recipe", output),
                ("needs", spare),
                (
                    "expected",
                    f"KL {choice.kl:.2g}, measured on {measured.tokens:,} tokens of {measured.text}",
                ),
            ]
        )
    )
    terminal.show("")
    losses, parts = measured.losses(), choice.recipe.parts
    rows = [
        (
            *(str(group.layer) if group.layer is not None else "-", group.part),
            parts.of(group.part, group.layer).format,
            *(f"{kl:.2g}" for kl in forms.values()),
        )
        for group, forms in sorted(losses.items(), key=lambda item: -max(item[1].values()))
    ]
    formats = [form.format for form in next(iter(losses.values()))]
    titles = ("layer", "part", "chosen", *(f"KL if {name}" for name in formats))
    terminal.show(table(titles, rows, right=range(3, 3 + len(formats))))
