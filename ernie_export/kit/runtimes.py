"""The runtimes that kits are built for: a file each, and what the stages of a build ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine
    from ernie_export.kit.contents import Contents


class Runtime(Protocol):
    def build(self, contents: Contents, work: Path, threads: int | None) -> dict[str, Any]:
        """Build the engine from the kit, its files into the folder `work`; what `requires` says of it from now on.

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
    raise UserError(
        f"The kit is for the runtime {name}, which its program does not know", "Build the kit again."
    )
