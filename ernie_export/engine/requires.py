"""What an engine needs of the machine that opens it; written when it is built, checked before it is opened."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ernie_export.stack import Architecture, Version, Versions

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
