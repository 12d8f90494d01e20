"""ONNX Runtime: its engine is made in memory whenever the graph is opened, so nothing of it is kept.

The kit holds the graph as it is opened, once as it ships and once with its routers shown: making these takes
onnx, which a device need not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_export.engine.onnxruntime import OnnxRuntimeEngine
from ernie_export.kit.runtimes import Made

if TYPE_CHECKING:
    from ernie_export.kit.contents import Contents

AS_IT_SHIPS, SHOWING_ROUTERS = "kit/as-it-ships.onnx", "kit/showing-routers.onnx"


class OnnxRuntime:
    def build(self, contents: Contents, work: Path, threads: int | None) -> Made:
        self.open(contents, work, (), threads)
        return Made({})

    def open(
        self, contents: Contents, work: Path, probes: Sequence[str], threads: int | None
    ) -> OnnxRuntimeEngine:
        graph = contents.folder / (SHOWING_ROUTERS if probes else AS_IT_SHIPS)
        return OnnxRuntimeEngine(contents.folder, contents.info, probes, (), threads, graph)
