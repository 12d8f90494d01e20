"""A model repository of Triton's with the model of a bundle.

    NAME/config.pbtxt
    NAME/1/model.onnx/model.onnx, weights/*.bin     a graph with external weights is a folder of that name to Triton

The graph is the bundle's, but for its head, which reads the last token alone; the weight files are the bundle's own,
linked where the file system can, so that they take no room twice.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ernie_export.bundle.publish import publish
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.opened_graph import LOGITS_TO_KEEP, opened_graph
from ernie_export.errors import UserError
from ernie_export.graph.weights import FOLDER
from ernie_export.triton.config import Kind, model_config

if TYPE_CHECKING:
    import onnx

CONFIG = "config.pbtxt"
VERSION = "1"
MODEL = "model.onnx"
KINDS: dict[str, Kind] = {"onnxruntime-cpu": "KIND_CPU", "onnxruntime-cuda": "KIND_GPU"}
"""By the runtimes that Triton has a backend for."""


def make_repository(
    bundle: Path, repository: Path, name: str, context: int | None = None, sequences: int = 1
) -> Path:
    """→ the model's folder in the repository, which may hold other models.

    Args:
        context: tokens of each sequence's cache; None: as many as the bundle takes.
        sequences: how many have a cache at once.

    Raises:
        UserError: the bundle cannot be read or is for no runtime of Triton's, the model stands there already,
            or the numbers do not suit the bundle.
    """
    info = EngineInfo.read(bundle)
    kind = kind_of(bundle, info)
    context = length_of(info, context)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise UserError(f"{name!r} is no name of a model", "Use letters, digits, `.`, `_` and `-`.")
    final = repository.absolute() / name
    if os.path.lexists(final):
        raise UserError(f"{final} exists", "Give another --name, or remove it.")
    graph = opened_graph(bundle / info.graph)
    partial = final.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    place = partial / VERSION / MODEL
    place.mkdir(parents=True)
    last_logits_alone(graph)
    (partial / CONFIG).write_text(model_config(name, graph, context, sequences, kind), "utf-8")
    (place / MODEL).write_bytes(graph.SerializeToString(deterministic=True))
    shutil.copytree(bundle / FOLDER, place / FOLDER, copy_function=link_or_copy)
    publish(partial, final)
    return final


def kind_of(bundle: Path, info: EngineInfo) -> Kind:
    if info.runtime not in KINDS:
        raise UserError(
            f"{bundle} is for the runtime {info.runtime}, which Triton has no backend for",
            "Build for the target cuda, or cpu.",
        )
    return KINDS[info.runtime]


def length_of(info: EngineInfo, context: int | None) -> int:
    if context is not None and not 1 <= context <= info.max_context:
        raise UserError(
            f"a cache of {context} tokens was asked for, the bundle holds at most {info.max_context}",
            "Ask for fewer, or build with a larger `context` in the recipe.",
        )
    return context or info.max_context


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
