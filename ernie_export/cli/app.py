"""The commands, and the options that all of them share."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer

from ernie_export import __version__
from ernie_export.cli import (
    bench,
    bits,
    build,
    chat,
    deploy,
    device,
    diff,
    generate,
    inspect,
    machine,
    plan,
    registry,
    report,
    signing,
    synthesize,
    triton,
    validate,
)
from ernie_export.cli.terminal import terminal

app = typer.Typer(
    help="ERNIE-4.5 checkpoints become engines that are known to be right.",
    # Plain help needs typer alone; rich would double the time it takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(inspect.inspect)
app.command()(build.build)
app.command()(validate.validate)
app.command()(validate.verify)
app.command()(report.report)
app.command()(diff.diff)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(plan.plan)
app.command()(bench.bench)
app.command()(bits.bits)
app.command()(signing.sign)
app.command()(registry.push)
app.command()(registry.pull)
app.command()(deploy.deploy)
app.command()(triton.triton)
app.add_typer(device.app)
app.command()(synthesize.synthesize)
app.command()(machine.doctor)
app.command()(machine.targets)
app.command()(machine.recipes)


def _version(wanted: bool) -> None:
    if wanted:
        print("ernie-export", __version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def shared(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no messages but errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="A traceback with every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    terminal.quiet = quiet
    if not debug:
        warnings.simplefilter("ignore")  # those of libraries mean nothing to who did not write the code
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)
