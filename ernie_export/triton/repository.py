"""A model repository of Triton's with the model of a bundle.

    NAME/config.pbtxt
    NAME/1/model.onnx/model.onnx, weights/*.bin     for the ONNX Runtime backend: a graph with external weights is a
                                                    folder of that name
    NAME/1/model.py, ernie_export.zip, bundle/      for the Python backend, which runs engines of TensorRT

The graph is the bundle's, but for its head, which reads the last token alone; the files of the bundle are its own,
linked where the file system can, so that they take no room twice.
"""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ernie_export.bundle import archive
from ernie_export.bundle.publish import publish
from ernie_export.engine.compatibility import require_room
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.opened_graph import LOGITS_TO_KEEP, opened_graph
from ernie_export.engine.tensorrt_variants import VARIANTS
from ernie_export.errors import UserError
from ernie_export.graph.weights import FOLDER
from ernie_export.triton import serving
from ernie_export.triton.config import Kind, engine_config, model_config

if TYPE_CHECKING:
    import onnx

CONFIG = "config.pbtxt"
VERSION = "1"
MODEL = "model.onnx"
KINDS: dict[str, Kind] = {"onnxruntime-cpu": "KIND_CPU", "onnxruntime-cuda": "KIND_GPU"}
"""By the runtimes that Triton has a backend for."""
SEQUENCES = 8
PROGRAM = "ernie_export.zip"
STARTER = f"""\
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "{PROGRAM}"))
from ernie_export.triton.serving import TritonPythonModel  # noqa: E402, F401
""".encode()


def make_repository(
    bundle: Path, repository: Path, name: str, context: int | None = None, sequences: int | None = None
) -> Path:
    """→ the model's folder in the repository, which may hold other models.

    Args:
        context: tokens of each sequence's cache; None: as many as the bundle takes.
        sequences: how many have a cache at once; None: eight, or as many as the engine takes.

    Raises:
        UserError: the bundle cannot be read or is for no runtime of Triton's, the model stands there already,
            or the numbers do not suit the bundle.
    """
    info = EngineInfo.read(bundle)
    most = info.requires.batch if info.requires else None
    sequences = sequences or min(SEQUENCES, most or SEQUENCES)
    context = info.max_context if context is None else context
    require_room(info, sequences, context)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise UserError(f"{name!r} is no name of a model", "Use letters, digits, `.`, `_` and `-`.")
    if info.runtime in VARIANTS:
        require_engines(bundle, info)
        laid_out = partial(lay_out_engines, bundle, info, name, context, sequences)
    else:
        laid_out = partial(lay_out_graph, bundle, info, name, context, sequences, kind_of(bundle, info))
    final = repository.absolute() / name
    if os.path.lexists(final):
        raise UserError(f"{final} exists", "Give another --name, or remove it.")
    unfinished = final.with_name(f".{name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / VERSION).mkdir(parents=True)
    laid_out(unfinished)
    publish(unfinished, final)
    return final


def lay_out_graph(
    bundle: Path, info: EngineInfo, name: str, context: int, sequences: int, kind: Kind, model: Path
) -> None:
    graph = opened_graph(bundle / info.graph)
    last_logits_alone(graph)
    place = model / VERSION / MODEL
    place.mkdir()
    (model / CONFIG).write_text(model_config(name, graph, context, sequences, kind), "utf-8")
    (place / MODEL).write_bytes(graph.SerializeToString(deterministic=True))
    shutil.copytree(bundle / FOLDER, place / FOLDER, copy_function=link_or_copy)


def lay_out_engines(
    bundle: Path, info: EngineInfo, name: str, context: int, sequences: int, model: Path
) -> None:
    place = model / VERSION
    (model / CONFIG).write_text(engine_config(name, info.vocab_size, context, sequences), "utf-8")
    (place / "model.py").write_bytes(STARTER)
    (place / PROGRAM).write_bytes(archive.packed([serving.__name__]))
    shutil.copytree(bundle, place / serving.BUNDLE, copy_function=link_or_copy)


def require_engines(bundle: Path, info: EngineInfo) -> None:
    """That the engines are there: those of a kit are not yet."""
    if not (info.requires and info.requires.engine):
        raise UserError(
            f"{bundle} is a kit, whose engines are not built yet",
            "Run `python3 kit.pyz build` on the server that it is for, and name the bundle that comes of it.",
        )


def kind_of(bundle: Path, info: EngineInfo) -> Kind:
    if info.runtime not in KINDS:
        raise UserError(
            f"{bundle} is for the runtime {info.runtime}, which Triton has no backend for",
            "Build for the target cuda or cpu, or for a server with TensorRT.",
        )
    return KINDS[info.runtime]


def last_logits_alone(graph: onnx.ModelProto) -> None:
    """`opened_graph` asks for how many tokens logits are made: one, here, and nobody is asked."""
    from onnx import numpy_helper

    asked = next(value for value in graph.graph.input if value.name == LOGITS_TO_KEEP)
    graph.graph.input.remove(asked)
    graph.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), LOGITS_TO_KEEP))
    for value in graph.graph.output:
        if value.name == "logits":
            value.type.tensor_type.shape.dim[1].Clear()
            value.type.tensor_type.shape.dim[1].dim_value = 1


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
