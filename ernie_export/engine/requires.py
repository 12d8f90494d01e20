"""What an engine needs of the machine that opens it; written when it is built, checked before it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ernie_export.engine import plugin_library
from ernie_export.stack import Architecture, Version, Versions

if TYPE_CHECKING:
    from ernie_export.target import Target

PLUGINS = "plugins"
"""The folder of a kit's library."""
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
Module = Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]


class _Needed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Binary(_Needed):
    """A file that a damaged copy of would crash the process: checked byte by byte before it is loaded."""

    path: Annotated[str, Field(pattern=f"^{_NAME}(/{_NAME})*$")]
    """Inside the bundle."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Requires(_Needed):
    """What stands in `engine.json`. A list is of what will do; an empty one, or None: any."""

    module: Module
    versions: list[Versions]
    """Of the module. An engine of TensorRT's takes the one that built it alone."""
    install: str
    """How a machine gets one of them."""
    provider: str | None = None
    """Of ONNX Runtime: what the engine runs on, where that is not the CPU."""
    planned: dict[Versions, str] = {}
    """Versions that are not taken yet, and why."""
    architecture: Architecture | None = None
    sm: list[Version] = []
    """Compute capabilities."""
    cuda: Version | None = None
    """The driver must take kernels of this version: of its first number, or newer."""
    engine: Binary | None = None
    """Of TensorRT: that of decode."""
    prefill: Binary | None = None
    """The engine that reads prompts, where it is one of its own."""
    plugin: Binary | None = None
    """The library with the operators that the engine calls."""
    checkpoint: str
    """The fingerprint of the checkpoint whose weights the engine is bound to."""
    context: Annotated[int, Field(ge=1)]
    """Tokens a row, at most: the optimization profile's, or the graph's."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """Rows, at most; None: as many as there is memory for."""


def requires_of(target: Target, fingerprint: str, context: int) -> Requires:
    """What the machine that opens the engine must have: any stack of the target's."""
    ready = target.ready_stacks
    (module,) = {stack.module for stack in ready}
    planned = {
        version: f"{stack.name} is planned: {stack.planned}"
        for stack in target.stacks
        if stack.planned
        for version in stack.versions
    }
    return Requires(
        module=module,
        versions=sorted({version for stack in ready for version in stack.versions}),
        install=" or ".join(dict.fromkeys(stack.install for stack in ready)),
        provider=ready[0].provider,
        cuda=ready[0].cuda if ready[0].provider else None,
        planned=planned,
        architecture=target.architecture,
        checkpoint=fingerprint,
        context=context,
    )


def needs_of_gpu(target: Target, batch: int) -> dict[str, Any]:
    """What engines of TensorRT's need beside, as fields of Requires: of a kit its plugins too."""
    needs: dict[str, Any] = {
        "sm": [target.sm] if target.sm else [],
        "cuda": target.ready_stacks[0].cuda,
        "batch": batch,
    }
    if target.is_kit:
        library, described = plugin_library.of(target)
        needs["plugin"] = Binary(path=f"{PLUGINS}/{library.name}", sha256=described.sha256)
    return needs
