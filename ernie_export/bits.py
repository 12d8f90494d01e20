"""`bits = "auto"`: the loop that measures, chooses, and plans again, until a recipe keeps to its budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.errors import UserError
from ernie_export.plan.bits import best, groups, smallest
from ernie_export.plan.changes import changes
from ernie_export.plan.memory import Memory, memory
from ernie_export.plan.plan import PROMPT, available_on, setting_of
from ernie_export.plan.setting import Setting
from ernie_export.readable import bytes_of, size
from ernie_export.recipe import Recipe
from ernie_export.sensitivity import Sensitivity, sensitivity
from ernie_export.taken import require_taken
from ernie_export.target import Target

if TYPE_CHECKING:
    from ernie_export.progress import Progress

WINDOWS, TOKENS = 8, 128
"""Of text that sensitivity is measured on."""
CALIBRATION = Path(__file__).parent / "calibrate" / "calibration.txt"


class Choice(BaseModel):
    """What `ernie-export bits --json` prints. Sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    target: str
    budget: int
    needed: int
    """By the chosen recipe."""
    kl: float
    """Expected of it: the measured losses of its groups, summed."""
    recipe: Recipe
    memory: Memory
    sensitivity: Sensitivity


def budget_of(text: str, target: Target) -> tuple[int, Target]:
    """A number of bytes, `8 GB`, counted as `target` holds things; or all that a named target has for an engine.

    Raises:
        UserError: it is neither.
    """
    named = next((known for known in Target.all() if known.name == text), None)
    if named and (named.memory or not named.needs_gpu):
        return available_on(named), named
    try:
        return bytes_of(text), target
    except ValueError:
        raise UserError(
            f"{text!r} is no memory budget",
            "Give a size, `8 GB`, or the name of a target that has its memory: `ernie-export targets`.",
        ) from None


def choose(
    folder: Path,
    target: Target,
    recipe: Recipe,
    budget: str,
    progress: Progress,
    text: Path | None = None,
    context: int | None = None,
    batch: int = 1,
) -> Choice:
    """The recipe of the least expected loss that keeps to the budget, in the integer formats there are.

    Parts in float formats, block sizes and what the recipe says of single layers stay. Memory is counted
    as `plan` counts it.

    Raises:
        UserError: the budget is none, or cannot be met: by how much, and what would; or the target does not take
            what is not chosen.
    """
    room, target = budget_of(budget, target)
    require_taken(target, recipe)
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    setting = setting_of(config, recipe, context, batch, PROMPT)
    if not groups(config, setting.parts):
        raise UserError(
            f"the recipe {recipe.name} leaves nothing to choose",
            "Give parts an integer format, or choose another.",
        )
    require_room(checkpoint, target, smallest(config, setting), room)
    from ernie_export.generate.tokenizer import TextTokenizer
    from ernie_export.validate.sample import Sample, text_windows

    windows = text_windows(
        Sample(
            windows=WINDOWS,
            window_tokens=min(TOKENS, config.max_position_embeddings),
            text=text or CALIBRATION,
        ),
        TextTokenizer.read(folder).encode,
    )
    found = sensitivity(checkpoint, setting.parts, windows.ids, windows.source, progress)
    made, kl = best(config, target, setting, found.losses(), room)
    return Choice(
        target=target.name,
        budget=room,
        needed=memory(config, target, made).peak,
        kl=kl,
        recipe=chosen(recipe, made, room, kl, target),
        memory=memory(config, target, made),
        sensitivity=found,
    )


def chosen(recipe: Recipe, made: Setting, room: int, kl: float, target: Target) -> Recipe:
    """The recipe with what was chosen, and the context that it was chosen for."""
    return recipe.model_copy(
        update={
            "name": f"{recipe.name[:59]}-auto",
            "description": f"The bits of each layer and part for {size(room)} of memory on {target.name}, "
            f"{made.batch} row{'s' * (made.batch > 1)} at once; expected KL {kl:.2g}",
            "context": made.context,
            "parts": made.parts,
            "bits": None,
            "budget": None,
        }
    )


def require_room(checkpoint: Checkpoint, target: Target, least: Setting, room: int) -> None:
    """Refuse, before anything is measured, a budget that the smallest formats do not keep to."""

    def needs(setting: Setting) -> int:
        return memory(checkpoint.config, target, setting).peak

    needed = needs(least)
    if needed <= room:
        return
    others = [f"{change} ({size(change.needs)})" for change in changes(checkpoint.config, least, room, needs)]
    remedy = f"Give at least {-(-needed // 10**6)} MB"
    raise UserError(
        f"The smallest formats need {size(needed)}, {size(needed - room)} more than the budget of {size(room)}",
        f"{remedy}, or change: {'; or '.join(others)}." if others else f"{remedy}.",
    )
