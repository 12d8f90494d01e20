"""`build`: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.inspect import CheckpointFolder, Json, folder_of
from ernie_export.cli.report_table import failed_gates, refusal, show_report, verdict
from ernie_export.cli.terminal import facts, terminal

if TYPE_CHECKING:
    from ernie_export.pipeline import BuildResult


def _target_names() -> list[str]:
    from ernie_export.target import Target

    return [target.name for target in Target.all() if target.can_be_built]


def _recipe_names() -> list[str]:
    from ernie_export.recipe import Recipe

    return Recipe.names()


def build(
    *,
    checkpoint: CheckpointFolder = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="T", help="What to build for; see `ernie-export targets`.", autocompletion=_target_names
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(metavar="R", help="A recipe's name, or its file.", autocompletion=_recipe_names),
    ] = "int4",
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXT",
            help="For a recipe that calibrates: text like that which the model will read. "
            "Without it, the English documentation that comes along.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="BUNDLE", help="The folder to write.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace another build that stands there.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a bundle from a checkpoint, and validate it.

    A build that was interrupted goes on where it stopped; one that stands there already is kept.
    """
    from ernie_export.recipe import Recipe
    from ernie_export.target import Target

    purpose, how = Target.find(target), Recipe.find(recipe)
    purpose.must_not_be_planned()
    from ernie_export import pipeline

    with terminal.progress() as progress:
        result = pipeline.build(
            folder_of(checkpoint), purpose, how, output, replace, progress, terminal.say, calibration
        )
    report = result.report_data
    if json:
        _emit(result)
    else:
        show_report(report)
        terminal.show("")
        terminal.show(facts(_rows(result)))
    if result.verdict == "failed":
        raise refusal(report, f"The report is {result.report}.")


def _emit(result: BuildResult) -> None:
    from ernie_export.cli.outputs import BuildOutput

    terminal.emit(
        BuildOutput(
            bundle=str(result.bundle) if result.verdict == "passed" else None,
            report=str(result.report),
            verdict=result.verdict,
            reused=result.reused,
            failed_gates=failed_gates(result.report_data),
            sample=result.sample,
            kit=result.kit and result.verdict == "passed",
        )
    )


def _rows(result: BuildResult) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("verdict", verdict(result.verdict == "passed"))]
    if result.verdict == "passed":
        rows.append(("bundle", f"{result.bundle}{' (stood there already)' if result.reused else ''}"))
    rows.append(("report", result.report))
    if result.sample:
        rows.append(("sample", result.sample))
    if result.kit and result.verdict == "passed":
        rows.append(
            (
                "next",
                f"a kit: copy it to the device, and there run python3 {result.bundle.name}/kit.pyz build",
            )
        )
    return rows
