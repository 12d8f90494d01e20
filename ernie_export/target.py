"""What a bundle is for: the runtime, the bodies of its operators, the memory and how fast it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ernie_export import rows
from ernie_export.errors import UserError
from ernie_export.stack import Architecture, Stack

MIB = 1 << 20


class _Figure(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Memory(_Figure):
    mib: Annotated[int, Field(ge=0)]
    source: str

    @property
    def bytes(self) -> int:
        return self.mib * MIB


class Bandwidth(_Figure):
    gb_per_s: Annotated[float, Field(gt=0)]
    """Peak, 10⁹ bytes a second."""
    source: str


class Target(rows.Row):
    """A row of `targets.toml`; what is None is measured where the plan is made."""

    description: str
    status: Literal["built here", "built on target", "planned"]
    """Whether `build` makes it, makes a kit that builds it on its device, or `plan` alone knows it."""
    runtime: Literal["onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-rtx", "tensorrt", "tensorrt_rtx"]
    bodies: Literal["onnxruntime", "onnxruntime_gpu", "tensorrt", "tensorrt_rtx"]
    stack: Annotated[list[str], Field(min_length=1)]
    """The software it runs on, any one of them: rows of stacks.toml."""
    architecture: Architecture | None = None
    """Of the CPU; None: any."""
    sm: str | None = None
    """CUDA compute capability."""
    memory: Memory | None = None
    """All that software sees."""
    reserved: Memory | None = None
    """What the system keeps of it."""
    bandwidth: Bandwidth | None = None
    note: str = ""

    @property
    def stacks(self) -> list[Stack]:
        return [Stack.find(name) for name in self.stack]

    @property
    def ready_stacks(self) -> list[Stack]:
        """Those that have its runtime, and for which something can be built."""
        module = "onnxruntime" if self.runtime.startswith("onnxruntime") else self.runtime
        return [stack for stack in self.stacks if stack.module == module and not stack.planned]

    @property
    def needs_gpu(self) -> bool:
        return any(stack.cuda for stack in self.stacks)

    @property
    def is_built_here(self) -> bool:
        return self.status == "built here"

    @property
    def is_kit(self) -> bool:
        """What `build` makes of it is a kit, whose engine is built on the device."""
        return self.status == "built on target"

    @property
    def can_be_built(self) -> bool:
        return self.is_built_here or self.is_kit

    def of_size(self, memory: int | None, gb_per_s: float | None) -> Target:
        """With the bytes of memory and the bandwidth that somebody names, where he does."""
        figures: dict[str, object] = {}
        if memory is not None:
            figures["memory"] = Memory(mib=memory >> 20, source="as asked for")
            figures["reserved"] = Memory(mib=0, source="as asked for")
        if gb_per_s is not None:
            figures["bandwidth"] = Bandwidth(gb_per_s=gb_per_s, source="as asked for")
        return self.model_copy(update=figures)

    def must_not_be_planned(self) -> None:
        """Refuse what no build can be made for yet.

        Raises:
            UserError: the target is only planned.
        """
        if not self.can_be_built:
            built = ", ".join(target.name for target in Target.all() if target.can_be_built)
            raise UserError(
                f"The target {self.name} is planned: nothing can be built for it yet",
                f"`ernie-export plan --target {self.name}` tells what would fit; {built} can be built.",
            )

    @staticmethod
    def all() -> list[Target]:
        return Target.read(Path(__file__).parent / "targets.toml")

    @staticmethod
    def read(path: Path) -> list[Target]:
        """The targets in a file.

        Raises:
            UserError: it cannot be read, or is no table of targets.
        """
        return rows.read(path, Target, "targets")

    @classmethod
    def find(cls, name: str) -> Target:
        """The target of that name.

        Raises:
            UserError: there is none.
        """
        return rows.find(name, cls.all(), "target")
