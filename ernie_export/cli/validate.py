"""`validate` and `verify`: is a bundle right, and is it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ernie_export.cli.inspect import Json, folder_of
from ernie_export.cli.report import Compare, Forms, HtmlFile, JunitFile
from ernie_export.cli.report_table import baseline_table, refusal, show_report
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
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="REPORT", help="Fail where quality has fallen against this earlier report."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=HOW",
            help="How far a metric may fall against the baseline: 1.1x, 0.005, or any; may be repeated.",
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write the report, to be a baseline later."),
    ] = None,
    way: Annotated[
        Literal["whole", "layers"] | None,
        typer.Option(help="Run the engine whole, or layer by layer; without it, as the free memory allows."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep here what the original computes, for the next build of the checkpoint.",
        ),
    ] = None,
    html: HtmlFile = None,
    junit: JunitFile = None,
    compare: Compare = None,
    json: Json = False,
) -> None:
    """Compare a bundle with the original model.

    The gates of its recipe decide, and the baseline where one is given.
    """
    from ernie_export.bundle.manifest import Manifest
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.digest import sha256_of
    from ernie_export.recipe import Recipe
    from ernie_export.validate import run
    from ernie_export.validate.baseline import Baseline

    manifest = Manifest.read(bundle)
    forms = Forms(html, junit, report_file, compare or ())
    if allow and baseline is None:
        raise UserError("There is nothing to fall against", "Add --baseline REPORT.")
    expected = Baseline.read(baseline, allow or (), manifest.checkpoint.fingerprint) if baseline else None
    recipe = Recipe.read(bundle / "recipe.toml")
    with terminal.progress() as progress:
        checkpoint = folder_of(against)
        if Checkpoint.open(checkpoint).fingerprint(progress) != manifest.checkpoint.fingerprint:
            raise UserError(
                f"{bundle} was not built from {checkpoint}, but from another {manifest.checkpoint.name}",
                "Name the checkpoint it was built from with --against.",
            )
        report = run.validate(
            bundle, checkpoint, recipe.gates, progress, recipe=recipe.name, target=manifest.target,
            way=way, keep=keep,
        )  # fmt: skip
    report = report.model_copy(update={"manifest_sha256": sha256_of(bundle / Manifest.FILE)})
    if expected:
        report = expected.judge(report)
    forms.write(report, manifest.claims)
    if json:
        terminal.emit(report)
    else:
        show_report(report)
        if report.baseline:
            terminal.show("")
            terminal.show(baseline_table(report.baseline))
    if report.verdict == "failed":
        raise refusal(report, "Build with a recipe that keeps more bits.")


def verify(
    bundle: BundleFolder,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Check the signature too: it must be by one whom this policy names."
        ),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of a policy: the one key that must have signed."),
    ] = None,
) -> None:
    """Check that every file of a bundle is as it was built, and who signed it."""
    from ernie_export.bundle import verify as bundle_verify
    from ernie_export.bundle.manifest import Manifest
    from ernie_export.bundle.provenance import Provenance
    from ernie_export.cli.signing import signed_by

    with terminal.progress() as progress:
        problems = bundle_verify.verify(bundle, progress)
    if problems:
        terminal.show(table(("file", "problem"), [(problem.path, problem.message) for problem in problems]))
        first = problems[0]
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise WorkError(
            f"{bundle} is not what was built: {first.path}: {first.message}{more}",
            "Fetch or build the bundle again.",
        )
    signer = signed_by(bundle, policy, public_key)
    files = Manifest.read(bundle).files
    terminal.show(
        f"{len(files)} files, {size(sum(file.size for file in files.values()))}: all as they were built{signer}"
    )
    if provenance := Provenance.read(bundle):
        terminal.show(provenance.told())
