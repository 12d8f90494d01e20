"""What a build needs of the machine that builds: memory at each stage's highest point, and disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ernie_export.plan import machine, validating
from ernie_export.plan.calibrating import calibrating
from ernie_export.plan.measured import (
    BF16,
    COMPARED_AT_ONCE,
    COMPARED_ROWS,
    PIECES,
    TRACE,
    TRACE_LAYER,
    WRITER,
)
from ernie_export.plan.memory import memory

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.plan.setting import Setting
    from ernie_export.recipe import Calibration
    from ernie_export.target import Target


class Building(BaseModel):
    """Bytes of anonymous memory, which mapped files do not count to."""

    model_config = ConfigDict(frozen=True)

    trace: int
    weights: int
    """Of the matrices that are rounded to nearest."""
    calibration: int | None = None
    """Of those that are rounded for a text; None: the recipe does not calibrate."""
    validation: int
    """With the engine whole, or layer by layer where this machine has too little memory free for that."""
    peak: int
    disk: int
    """Of the weight files."""


def building(
    config: ErnieConfig,
    target: Target,
    setting: Setting,
    disk: int,
    calibration: Calibration | None = None,
    threads: int | None = None,
) -> Building:
    """`threads` of the weight writer, None for every core."""
    trace = TRACE + TRACE_LAYER * config.num_hidden_layers
    threads = threads or len(os.sched_getaffinity(0))
    # Of an expert, gate and up are copied to interleave their rows; all else is read where it is mapped.
    pair = 2 * config.moe_intermediate_size * config.hidden_size * BF16
    weights = trace + WRITER + threads * (PIECES + pair)
    calibrates = trace - TRACE + calibrating(config, calibration, threads) if calibration else None
    whole = validating.whole(config, memory(config, target, validated(setting)))
    way = whole if validating.fits_whole(whole, machine.memory()[1]) else validating.by_layer(config)
    validate = trace - TRACE + way
    return Building(
        trace=trace,
        weights=weights,
        calibration=calibrates,
        validation=validate,
        peak=max(trace, weights, calibrates or 0, validate),
        disk=disk,
    )


def validated(setting: Setting) -> Setting:
    """How an engine is used that is validated: windows, and a few rows at once."""
    tokens = min(COMPARED_AT_ONCE, setting.context)
    return setting.model_copy(update={"context": tokens, "prompt": tokens, "batch": COMPARED_ROWS})
