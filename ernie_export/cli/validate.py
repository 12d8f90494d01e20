"""`validate` and `verify`: is a bundle right, and is it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ernie_export.cli.inspect import Json, folder_of
from ernie_export.cli.report_table import failed_gates, refusal, report_table
from ernie_export.cli.terminal import table, terminal
from ernie_export.errors import UserError, WorkError
from ernie_export.readable import size

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that `build` wrote.")]


def validate(
    bundle: BundleFolder,
    against: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Its folder; without one, the small one that comes along."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare a bundle with the original model.

    The gates of its recipe decide.
    """
    from ernie_export.bundle.manifest import Manifest
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.recipe import Recipe
    from ernie_export.validate import run

    manifest = Manifest.read(bundle)
    recipe = Recipe.read(bundle / "recipe.toml")
    with terminal.progress() as progress:
        checkpoint = folder_of(against)
        if Checkpoint.open(checkpoint).fingerprint(progress) != manifest.checkpoint.fingerprint:
            raise UserError(
                f"{bundle} was not built from {checkpoint}, but from another {manifest.checkpoint.name}",
                "Name the checkpoint it was built from with --against.",
            )
        report = run.validate(
            bundle, checkpoint, recipe.gates, progress, recipe=recipe.name, target=manifest.target
        )
    if json:
        terminal.emit(report)
    else:
        terminal.show(report_table(report))
    if failed_gates(report):
        raise refusal(report, "Build with a recipe that keeps more bits.")


def verify(bundle: BundleFolder) -> None:
    """Check that every file of a bundle is as it was built."""
    from ernie_export.bundle import verify as bundle_verify
    from ernie_export.bundle.manifest import Manifest

    with terminal.progress() as progress:
        problems = bundle_verify.verify(bundle, progress)
    if problems:
        terminal.show(table(("file", "problem"), [(problem.path, problem.message) for problem in problems]))
        raise WorkError(f"{bundle} is not what was built", "Fetch or build the bundle again.")
    files = Manifest.read(bundle).files
    terminal.show(
        f"{len(files)} files, {size(sum(file.size for file in files.values()))}: all as they were built"
    )
