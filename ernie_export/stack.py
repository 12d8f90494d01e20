"""The software that runs engines: TensorRT by JetPack or on servers, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ernie_export import rows
from ernie_export.errors import UserError
from ernie_export.nearest import did_you_mean

Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)*$")]
Architecture = Literal["aarch64", "x86_64"]


def is_version(version: str, prefix: str) -> bool:
    """Whether `version` is one of those that begin with `prefix`: 11.4.0 is a "11", 1.13 is no "1.1"."""
    return f"{version}.".startswith(f"{prefix}.")


class Stack(rows.Row):
    """A row of `stacks.toml`."""

    name: str
    description: str
    module: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    """What Python imports."""
    versions: Annotated[list[Version], Field(min_length=1)]
    """Of the module, each with all that begins with it."""
    cuda: Version | None = None
    """What it brings; None: it needs no GPU."""
    architecture: Architecture | None = None
    """None: any."""
    install: str
    """How a machine gets it."""
    planned: str = ""
    """Why nothing can be built for it yet; empty: it can."""

    def is_that_of(self, module: str, version: str) -> bool:
        return module == self.module and any(is_version(version, prefix) for prefix in self.versions)

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
        known = {stack.name: stack for stack in cls.all()}
        if name not in known:
            raise UserError(f"No stack is named {name!r}", did_you_mean(name, known))
        return known[name]


def stack_of(module: str, version: str, stacks: Iterable[Stack]) -> Stack | None:
    """The first of `stacks` that this version belongs to."""
    return next((stack for stack in stacks if stack.is_that_of(module, version)), None)
