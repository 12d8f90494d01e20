"""`plan`: does it fit, what takes how much, how fast can it be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.inspect import CheckpointFolder, Json, folder_of
from ernie_export.cli.synthesize import shape_names
from ernie_export.cli.terminal import coloured, facts, table, terminal
from ernie_export.errors import UserError
from ernie_export.readable import bytes_of, size

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.plan.plan import Plan
    from ernie_export.plan.traffic import Traffic


def target_names() -> list[str]:
    from ernie_export.target import Target

    return [target.name for target in Target.all()]


def recipe_names() -> list[str]:
    from ernie_export.recipe import Recipe

    return Recipe.names()


def _memory(text: str) -> int:
    """`24GB`, as it is given on the command line."""
    try:
        found = bytes_of(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}, like 24GB") from None
    if found < 1 << 20:
        raise typer.BadParameter(f"{text!r} are bytes, and less than any model needs: give a unit, 24GB")
    return found


def plan(
    *,
    checkpoint: CheckpointFolder = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE",
            help="Instead of CHECKPOINT: nano, 0.3b, 21b or 300b.",
            autocompletion=shape_names,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="T", help="What to plan for; see `ernie-export targets`.", autocompletion=target_names
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(metavar="R", help="A recipe's name, or its file.", autocompletion=recipe_names),
    ] = "int4",
    context: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Most tokens of a row; the recipe's or the checkpoint's most."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="B", min=1, max=1024, help="Rows at once.")] = 1,
    prompt: Annotated[
        int, typer.Option(metavar="P", min=1, help="Most tokens of a prompt, fed at once.")
    ] = 512,
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=_memory, help="What there is, `24GB`, in place of the target's figure."
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(metavar="GB/S", min=0.1, max=1e6, help="The memory's peak, in place of the target's."),
    ] = None,
    json: Json = False,
) -> None:
    """Tell whether it fits, what takes how much memory, and how fast the memory's bandwidth lets it be.

    It reads config.json alone: CHECKPOINT may be a folder without the weights.
    """
    from ernie_export.plan.plan import plan
    from ernie_export.recipe import Recipe
    from ernie_export.target import Target

    purpose, how = Target.find(target).of_size(memory, bandwidth), Recipe.find(recipe)
    config, name = _config(checkpoint, like)
    made = plan(config, purpose, how, name, context, batch, prompt)
    if json:
        terminal.emit(made)
    else:
        _show(made)


def _config(checkpoint: Path | None, like: str | None) -> tuple[ErnieConfig, str]:
    from ernie_export.checkpoint import shapes
    from ernie_export.checkpoint.config import ErnieConfig

    if like and checkpoint:
        raise UserError(f"--like {like} and a checkpoint are both given", "Give one of them.")
    folder = shapes.folder(like) if like else folder_of(checkpoint)
    return ErnieConfig.read(folder), like or folder.resolve().name


def _show(made: Plan) -> None:
    terminal.show(facts(_rows(made)))
    terminal.show("")
    terminal.show(table(("memory", "on disk", "in memory"), _memory_rows(made), right=(1, 2)))
    if not made.fits:
        title = "it fits with" if made.changes else "at the least"
        rows = [
            (str(change), size(change.saves), size(change.needs))
            for change in made.changes or [made.furthest]
        ]
        terminal.show("")
        terminal.show(table((title, "saves", "needs"), rows, right=(1, 2)))
    terminal.show("\nThis rests on")
    terminal.show(facts(made.assumptions.items()))


def _rows(made: Plan) -> list[tuple[str, object]]:
    spare = made.available - made.needed
    told = f"yes, {size(spare)} to spare" if made.fits else f"no, {size(-spare)} too much"
    if not made.fits and not made.changes:
        told += ", and no change there is makes it fit"
    setting, building = made.setting, made.building
    rows: list[tuple[str, object]] = [
        ("checkpoint", made.checkpoint),
        ("target", f"{made.target}, {size(made.available)} of memory"),
        ("recipe", made.recipe),
        ("use", f"{setting.batch} × {setting.context:,} tokens, prompts of {setting.prompt:,}"),
        ("fits", coloured(told, made.fits)),
        ("needs", f"{size(made.memory.running)} running, {size(made.memory.opening)} while it opens"),
    ]
    rows += [(f"decode, batch {each.batch}", _speed(each)) for each in made.traffic]
    stages = f"trace {size(building.trace)}, weights {size(building.weights)}, "
    stages += f"calibration {size(building.calibration)}, " if building.calibration else ""
    stages += f"validation {size(building.validation)}"
    return [*rows, ("build", f"{size(building.peak)} of memory ({stages}), {size(building.disk)} of disk")]


def _speed(each: Traffic) -> str:
    told = f"reads {size(each.bytes)} of weights"
    if each.experts_read:
        told += f" ({_number(each.experts_read)} experts a layer)"
    if each.tokens_per_second is None or each.tokens_per_second_at_full_context is None:
        return told
    empty, full = map(_number, (each.tokens_per_second, each.tokens_per_second_at_full_context))
    return f"{told}: at most {empty} tokens/s, {full} at a full context"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory_rows(made: Plan) -> list[tuple[str, str, str]]:
    held = made.memory
    one_copy = not made.weight_files["head"] and not held.weights["head"]
    names = {"embedding": "embedding, head"} if one_copy else {}
    rows: list[tuple[str, str, str]] = [
        (names.get(part, part), _size(disk), _size(held.weights[part]))
        for part, disk in made.weight_files.items()
        if disk or held.weights[part]
    ]
    for name, count in (
        ("KV cache", held.kv_cache),
        ("activations", held.activations),
        ("runtime", held.overhead),
    ):
        rows.append((name, "-", size(count)))
    return [*rows, ("all", size(sum(made.weight_files.values())), size(held.running))]


def _size(count: int) -> str:
    return size(count) if count else "-"
