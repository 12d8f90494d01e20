"""The runtimes that kits are built for: a file each, and what the stages of a build ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine
    from ernie_export.kit.contents import Contents


@dataclass(frozen=True)
class Made:
    """An engine that was built."""

    requires: dict[str, Any]
    """What engine.json says of it from now on, beside what the kit's says."""
    peak_bytes: int = 0
    """Memory that processes of its own took at most."""


class Runtime(Protocol):
    def build(self, contents: Contents, work: Path, threads: int | None) -> Made:
        """Build the engine from the kit, its files into the folder `work`.

        Raises:
            WorkError: the runtime refuses the graph, or there is too little memory.
        """
        ...

    def open(self, contents: Contents, work: Path, probes: Sequence[str], threads: int | None) -> Engine:
        """The engine that was built; with `probes`, one that shows every router of the graph."""
        ...


def runtime_of(name: str) -> Runtime:
    if name == "onnxruntime-cpu":
        from ernie_export.kit.onnxruntime import OnnxRuntime

        return OnnxRuntime()
    if name == "tensorrt":
        from ernie_export.kit.tensorrt import TensorRT

        return TensorRT()
    raise UserError(
        f"The kit is for the runtime {name}, which its program does not know", "Build the kit again."
    )
