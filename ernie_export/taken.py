"""Which formats a target takes: asked before the work, since a runtime tells only when it opens what was built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.recipe import PartFormat, Recipe
    from ernie_export.target import Target

#: Block sizes of experts that ONNX Runtime's QMoE takes on GPUs (docs/onnxruntime-gpu.md says who says so).
QMOE_BLOCKS = (64, 128)


def require_taken(target: Target, recipe: Recipe) -> None:
    """That the target takes every format of the recipe.

    Raises:
        UserError: the first that it does not.
    """
    for part, form in recipe.parts.named().items():
        if why := refusal(target, part, form):
            raise UserError(
                f"The target {target.name} does not take {form.format} for {part}: {why[0]}", why[1]
            )


def refusal(target: Target, part: str, form: PartFormat) -> tuple[str, str] | None:
    """Why a target does not take the format of a part, and what to do; None: it does."""
    if target.bodies != "onnxruntime_gpu" or not part.startswith("experts") or form.block_size is None:
        return None
    if target.runtime == "onnxruntime-rtx" and form.format != "int4":
        return f"{target.stack[0]} has experts in 4 bits only", "Give the part the format int4, or fp16."
    if form.block_size not in QMOE_BLOCKS:
        return (
            f"its operator for experts has no blocks of {form.block_size}",
            f"Give the part a block_size of {' or '.join(map(str, QMOE_BLOCKS))}.",
        )
    return None
