"""From the folder of a bundle to an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ernie_export.engine.compatibility import require_compatible
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.interface import Engine
from ernie_export.engine.providers import OF_RUNTIMES
from ernie_export.errors import UserError


def open_engine(
    folder: Path, probes: Sequence[str] = (), given: Sequence[str] = (), threads: int | None = None
) -> Engine:
    """Open the engine in `folder` with the runtime that its `engine.json` names.

    Args:
        probes: names of values of the graph that every `Fed` shall hold beside the logits.
        given: names of values of the graph that every `feed` will give, in place of what the engine
            computes; an operator that reads one reads what was given.
        threads: threads of the runtime; None for every core this process may use.

    Raises:
        UserError: the folder is no bundle, or its engine cannot be opened on this machine.
        WorkError: the runtime refuses the graph.
    """
    info = EngineInfo.read(folder)
    require_compatible(folder, info)
    if info.runtime in OF_RUNTIMES:
        from ernie_export.engine.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(folder, info, probes, given, threads, provider=OF_RUNTIMES[info.runtime])
    if info.runtime in ("tensorrt", "tensorrt_rtx"):
        from ernie_export.engine.tensorrt import TensorRTEngine

        return TensorRTEngine(folder, info, probes, given)
    raise UserError(
        f"{folder} was built for the runtime {info.runtime}, which this version does not know",
        "Build it again for one of the targets that `ernie-export targets` lists.",
    )


def open_graph(
    folder: Path, probes: Sequence[str] = (), given: Sequence[str] = (), threads: int | None = None
) -> Engine:
    """The bundle's graph in ONNX Runtime on this machine's CPU, whatever its engine was built for.

    Raises:
        UserError: the folder is no bundle.
        WorkError: the runtime refuses the graph.
    """
    from ernie_export.engine.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(folder, EngineInfo.read(folder), probes, given, threads)
