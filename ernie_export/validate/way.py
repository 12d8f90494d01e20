"""How the exported side is run: whole, as it ships, or layer by layer where it would not fit into memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ernie_export.errors import UserError
from ernie_export.plan import machine, validating
from ernie_export.plan.measured import MARGIN
from ernie_export.plan.memory import memory
from ernie_export.plan.setting import Setting
from ernie_export.readable import size
from ernie_export.target import Target
from ernie_export.validate.sizes import sizes

if TYPE_CHECKING:
    from ernie_export.generate.windows import Windows
    from ernie_export.recipe import Parts
    from ernie_export.reference.layers import LayeredReference

Way = Literal["whole", "layers"]
UNKNOWN = 4
"""Times its files that an engine may take whose formats are not known: fp16 that is held as fp32 twice."""
BY_LAYER = 8 << 30
"""Bytes: validation layer by layer opens no whole engine that takes more than this."""


@dataclass(frozen=True)
class Chosen:
    way: Way
    engine: int
    """Bytes that the whole engine takes, about."""
    free: int

    @property
    def opens_whole(self) -> bool:
        """Whether the engine is opened as it ships at all, to continue texts."""
        return self.way == "whole" or self.engine <= min(BY_LAYER, int(MARGIN * self.free))

    def note(self) -> str:
        """How it was run and why, for the report."""
        how = {"whole": "as a whole, as it ships", "layers": "layer by layer"}[self.way]
        return (
            f"The engine was run {how}: whole it takes about {size(self.engine)}, {size(self.free)} were free"
        )


def choose(
    folder: Path,
    graph: str,
    parts: Parts | None,
    target: str,
    reference: LayeredReference,
    windows: Windows,
    batch: int,
    forced: Way | None,
) -> Chosen:
    """`forced`, or what fits into the memory that is free now."""
    tokens = windows.ids.shape[1]
    engine = UNKNOWN * sum(sizes(folder / graph).files.values())
    needed = 2 * engine + reference.largest_bytes  # as it ships, and showing its routers
    if parts is not None:
        native = machine.native_operators() is not None
        setting = Setting(parts=parts, context=tokens, batch=batch, prompt=tokens, native=native)
        with suppress(UserError):  # a target of another version, or none: its files tell enough
            planned = memory(reference.config, Target.find(target), setting)
            engine, needed = planned.peak, validating.whole(reference.config, planned)
    free = machine.memory()[1]
    way: Way = "whole" if validating.fits_whole(needed, free) else "layers"
    return Chosen(forced or way, engine, free)
