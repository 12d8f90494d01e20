"""A fault: how it is planted, which gate must stop it, and where validation must say it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ernie_export.errors import ErnieExportError
from ernie_export.plan.machine import SWITCH
from ernie_export.recipe import Recipe
from ernie_export.validate.run import validate
from ernie_export.validate.sample import HELD_OUT, Sample
from tests.validate.planting import Plant, assembled

INT4, FP32 = ("int4",), ("fp32",)
BOTH = (*INT4, *FP32)
GPTQ = ("int4-gptq",)


def quick(folder: Path) -> Sample:
    """One short window, of a text in `folder`, which must exist: enough for every fault."""
    text = folder / HELD_OUT.name
    text.write_text(HELD_OUT.read_text("utf-8")[:4000], "utf-8")
    return Sample(
        windows=1, window_tokens=128, prompts=1, prompt_tokens=16, new_tokens=8, decode_tokens=16, batch=2,
        text=text,
    )  # fmt: skip


@dataclass(frozen=True)
class Fault:
    name: str
    gate: str
    """Must be among those that fail; "error" where the road ends with one before anything is measured."""
    place: str
    """What is named as the place begins with this; an error's text holds it."""
    plant: Plant = lambda folder: None
    """Into a copy of the bundle."""
    recipes: tuple[str, ...] = BOTH
    opener: Callable[..., Any] | None = None
    """Drives the engine wrongly."""
    checkpoint: Plant | None = None
    """Into a copy of the checkpoint, of which a bundle is then built."""


@dataclass(frozen=True)
class Outcome:
    gates: tuple[str, ...]
    """Those that failed; none where the fault got through."""
    place: str
    message: str

    def right(self, fault: Fault) -> bool:
        """The expected gate stopped it and the place is the right one."""
        where = fault.place in self.place if fault.gate == "error" else self.place.startswith(fault.place)
        return fault.gate in self.gates and where


def outcome(fault: Fault, recipe: Recipe, bundle: Path, nano: Path, work: Path, sample: Sample) -> Outcome:
    """Plant and validate; `bundle` is the sound one, `work` an empty folder.

    Some faults are planted in function bodies: those run, and no native operator in their place.
    """
    checkpoint = nano
    try:
        if fault.checkpoint:
            checkpoint = shutil.copytree(nano, work / "checkpoint")
            fault.checkpoint(checkpoint)
            folder = assembled(checkpoint, recipe, work / "partial")
        else:
            folder = shutil.copytree(bundle, work / "bundle")
        fault.plant(folder)
        with mock.patch.dict(os.environ, {SWITCH: "0"}):
            report = validate(
                folder, checkpoint, recipe.gates, recipe=recipe.name, target="cpu", sample=sample,
                **({"opener": fault.opener} if fault.opener else {}),
            )  # fmt: skip
    except ErnieExportError as error:
        return Outcome(("error",), str(error), str(error))
    failed = [gate for gate in report.gates if not gate.passed]
    return Outcome(
        tuple(gate.name for gate in failed), report.fault or "", "; ".join(gate.message for gate in failed)
    )
