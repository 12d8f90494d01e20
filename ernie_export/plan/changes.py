"""What to change so that it fits: the smallest change first, each tried before it is offered.

The order is that of what a change costs: context, then batch, then the formats of head and
embedding, of the other dense parts, of the experts.  Where no single one is enough, as few are taken
together as will do, each no further than needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ConfigDict

from ernie_export.errors import UserError
from ernie_export.plan.setting import Setting
from ernie_export.plan.weights import weight_files
from ernie_export.recipe import BlockSize, Format, PartFormat

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig

CONTEXT_STEP = 256
LEAST_CONTEXT = 1024
"""Less is offered by no change: it would be another use."""
FORMATS = get_args(Format)
"""From the largest to the smallest."""
OFFERED: tuple[Format, ...] = ("fp32", "fp16", "int8", "int4")
"""Those of them that every target has."""
GROUPS: tuple[tuple[str, ...], ...] = (("head", "embedding"), ("attention", "shared", "dense"), ("experts",))

Needs = Callable[[Setting], int]
"""Bytes at the highest point."""
Kind = Callable[[Setting], list[Setting]]
"""A kind of change: smaller and smaller settings."""


class Step(BaseModel):
    model_config = ConfigDict(frozen=True)

    what: str
    """`context 131,072 → 8,192`."""
    saves: int
    """Bytes, after the steps before it."""


class Change(BaseModel):
    model_config = ConfigDict(frozen=True)

    steps: list[Step]
    saves: int
    """Bytes, all steps together."""
    needs: int
    """Bytes, with the change."""
    setting: Setting

    def __str__(self) -> str:
        return "; ".join(step.what for step in self.steps)


def changes(config: ErnieConfig, setting: Setting, available: int, needs: Needs) -> list[Change]:
    """Every way that fits with the fewest kinds of change; empty where all of them would not do."""
    every = kinds(config)
    for count in range(1, len(every) + 1):
        enough = [some for some in combinations(every, count) if needs(far(some, setting)) <= available]
        if enough:
            return [change(setting, path(some, setting, available, needs), needs) for some in enough]
    return []


def furthest(config: ErnieConfig, setting: Setting, needs: Needs) -> Change:
    """Every kind as far as it goes."""
    through = [setting]
    for kind in kinds(config):
        through += kind(through[-1])[-1:]
    return change(setting, through[1:], needs)


def path(some: Sequence[Kind], setting: Setting, available: int, needs: Needs) -> list[Setting]:
    """A step of each kind: no further than must be while those that follow go as far as they can."""
    steps = [setting]
    for at, kind in enumerate(some, 1):

        def with_the_rest(option: Setting, rest: Sequence[Kind] = some[at:]) -> bool:
            return needs(far(rest, option)) <= available

        options = kind(steps[-1])  # each needs less than the one before
        steps.append(options[bisect_left(options, True, key=with_the_rest)])
    return steps[1:]


def far(some: Sequence[Kind], setting: Setting) -> Setting:
    for kind in some:
        *_, setting = setting, *kind(setting)
    return setting


def change(setting: Setting, through: list[Setting], needs: Needs) -> Change:
    sizes = [needs(each) for each in (setting, *through)]
    steps = [
        Step(what=told(*pair), saves=before - after)
        for pair, (before, after) in zip(pairwise((setting, *through)), pairwise(sizes), strict=True)
    ]
    return Change(steps=steps, saves=sizes[0] - sizes[-1], needs=sizes[-1], setting=[setting, *through][-1])


def kinds(config: ErnieConfig) -> list[Kind]:
    def of(group: tuple[str, ...]) -> Kind:
        return lambda setting: formats(config, setting, group)

    return [contexts, batches, *map(of, GROUPS)]


def contexts(setting: Setting) -> list[Setting]:
    top = (setting.context - 1) // CONTEXT_STEP * CONTEXT_STEP
    return [
        setting.model_copy(update={"context": context, "prompt": min(setting.prompt, context)})
        for context in range(top, LEAST_CONTEXT - 1, -CONTEXT_STEP)
    ]


def batches(setting: Setting) -> list[Setting]:
    return [setting.model_copy(update={"batch": batch}) for batch in range(setting.batch - 1, 0, -1)]


def formats(config: ErnieConfig, setting: Setting, group: tuple[str, ...]) -> list[Setting]:
    """The parts of a group in smaller and smaller formats; what is smaller already stays."""
    found = []
    for name in OFFERED:

        def smaller(part: str, now: PartFormat, name: Format = name) -> PartFormat:
            if part not in group or FORMATS.index(name) <= FORMATS.index(now.format):
                return now
            block = (now.block_size or max(get_args(BlockSize))) if name.startswith("int") else None
            return PartFormat(format=name, block_size=block)

        parts = setting.parts.mapped(smaller)
        made = setting.model_copy(update={"parts": parts})
        if parts != setting.parts and can_be_stored(config, made):
            found.append(made)
    return found


def can_be_stored(config: ErnieConfig, setting: Setting) -> bool:
    """Whether the shape can be stored in these formats."""
    try:
        weight_files(config, setting.parts, setting.context)
    except UserError:
        return False
    return True


def told(before: Setting, after: Setting) -> str:
    """In what two settings differ: `head and embedding int8 → int4`."""
    if before.context != after.context:
        return f"context {before.context:,} → {after.context:,}"
    if before.batch != after.batch:
        return f"batch {before.batch} → {after.batch}"
    found: dict[str, list[str]] = {}
    for part, form in before.parts.named().items():
        new = after.parts.named()[part]
        if new != form:
            found.setdefault(f"{form.format} → {new.format}", []).append(part)
    return ", ".join(f"{' and '.join(parts)} {formats}" for formats, parts in found.items())
