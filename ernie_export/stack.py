"""The software that runs engines: TensorRT by JetPack or on servers, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ernie_export import rows
from ernie_export.errors import UserError
from ernie_export.versions import is_version

Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)*$")]
Versions = Annotated[str, Field(pattern=r"^\d+(\.\d+)*\+?$")]
"""Those that begin so; with a + those from there on, of the same first number."""
Architecture = Literal["aarch64", "x86_64"]


class Stack(rows.Row):
    """A row of `stacks.toml`."""

    description: str
    module: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    """What Python imports."""
    versions: Annotated[list[Versions], Field(min_length=1)]
    """Of the module, any of them."""
    provider: str | None = None
    """Of ONNX Runtime, where it is not the CPU's."""
    cuda: Version | None = None
    """What it brings; None: it needs no GPU."""
    architecture: Architecture | None = None
    """None: any."""
    install: str
    """How a machine gets it."""
    planned: str = ""
    """Why nothing can be built for it yet; empty: it can."""

    def is_that_of(self, module: str, version: str) -> bool:
        return module == self.module and any(is_version(version, each) for each in self.versions)

    def must_not_be_planned(self) -> None:
        """
        Raises:
            UserError: nothing can be built for it yet.
        """
        if self.planned:
            ready = ", ".join(stack.name for stack in Stack.all() if not stack.planned)
            raise UserError(f"{self.name} is planned: {self.planned}", f"Use one of {ready}.")

    @staticmethod
    def all() -> list[Stack]:
        return rows.read(Path(__file__).parent / "stacks.toml", Stack, "stacks")

    @classmethod
    def find(cls, name: str) -> Stack:
        """The stack of that name.

        Raises:
            UserError: there is none.
        """
        return rows.find(name, cls.all(), "stack")


def stack_of(module: str, version: str, stacks: Iterable[Stack]) -> Stack | None:
    """The first of `stacks` that this version belongs to."""
    return next((stack for stack in stacks if stack.is_that_of(module, version)), None)
