"""Which formats a target takes: asked before the work, since a runtime tells only when it opens what was built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_export.errors import UserError
from ernie_export.target import Target

if TYPE_CHECKING:
    from ernie_export.recipe import PartFormat, Recipe

#: Block sizes of experts that ONNX Runtime's QMoE takes on GPUs (docs/onnxruntime-gpu.md says who says so).
QMOE_BLOCKS = (64, 128)
#: From which compute capability on a GPU has numbers of the format.
LEAST_SM = {"fp8": (8, 9), "nvfp4": (10, 0)}


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
    if form.format in LEAST_SM:
        return _of_small_floats(target, form.format)
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


def _of_small_floats(target: Target, name: str) -> tuple[str, str] | None:
    """TensorRT for RTX alone has bodies for them."""
    least = LEAST_SM[name]
    if target.runtime == "tensorrt_rtx" and _sm(target) >= least:
        return None
    takers = [each.name for each in Target.all() if each.runtime == "tensorrt_rtx" and _sm(each) >= least]
    remedy = f"Build for {', '.join(takers)}, or with the recipe int4."
    if target.runtime != "tensorrt_rtx":
        return f"{name} is built for TensorRT for RTX alone", remedy
    return f"its GPU is of SM {target.sm}, and {name} begins with {least[0]}.{least[1]}", remedy


def _sm(target: Target) -> tuple[int, ...]:
    return tuple(map(int, target.sm.split("."))) if target.sm else (0,)
