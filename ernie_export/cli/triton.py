"""`triton`: a bundle as a model of Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ernie_export.cli.inspect import Json
from ernie_export.cli.terminal import terminal
from ernie_export.cli.validate import BundleFolder


def triton(
    bundle: BundleFolder,
    repository: Annotated[Path, typer.Option(metavar="FOLDER", help="Triton's model repository.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the model.")] = "ernie",
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a sequence; without it, as the bundle takes.")
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Sequences that have a cache at once; without it eight, or the engine's most.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make a model of Triton Inference Server of a bundle, and its configuration.

    A graph is for its ONNX Runtime backend; engines of TensorRT are run by its Python backend. Files are linked, not
    copied, where the repository is on the bundle's file system.
    """
    from ernie_export.cli.outputs import TritonOutput
    from ernie_export.triton.repository import CONFIG, make_repository

    model = make_repository(bundle, repository, name, context, sequences)
    if json:
        terminal.emit(TritonOutput(model=str(model), config=str(model / CONFIG)))
    else:
        terminal.show(f"{model} is a model of Triton's: tritonserver --model-repository={repository}")
