"""The weight files of a recipe that calibrates: layer after layer, each rounded for what it reads on a text.

One layer of the reference is in memory at a time.  What the next one reads is kept beside the journal,
so that a killed build goes on there.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_export.calibrate.layer import Rounding, observed
from ernie_export.calibrate.record import CalibrationRecord
from ernie_export.calibrate.state import Journal, Progressed
from ernie_export.calibrate.text import calibration_windows
from ernie_export.errors import UserError
from ernie_export.graph.weights import read_layout
from ernie_export.graph.write import FILE
from ernie_export.partial import digest_of
from ernie_export.streaming import bytes_read, inputs, make_weight_file
from ernie_export.validate import environment

if TYPE_CHECKING:
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.generate.windows import Windows
    from ernie_export.graph.weights import WeightFile
    from ernie_export.partial import Work
    from ernie_export.recipe import Recipe


def calibration_text(checkpoint: Checkpoint, recipe: Recipe, path: Path | None) -> Windows | None:
    """What a recipe that calibrates reads; None for every other.

    Raises:
        UserError: a text is given that nothing would read, or it does not do.
    """
    from ernie_export.generate.tokenizer import TextTokenizer

    settings, longest = recipe.calibration, checkpoint.config.max_position_embeddings
    if settings is None:
        if path:
            raise UserError(
                f"The recipe {recipe.name} does not calibrate, so nothing would read {path}",
                "Name one that does, like int4-gptq, or give yours a table [calibration].",
            )
        return None
    if settings.window > longest:
        raise UserError(
            f"the recipe calibrates on windows of {settings.window} tokens, the checkpoint promises {longest}",
            f"Set `window` in the recipe's [calibration] to at most {longest}.",
        )
    return calibration_windows(path, settings, TextTokenizer.read(checkpoint.path).encode)


def calibration_inputs(recipe: Recipe, text: Windows | None) -> dict[str, str]:
    """What the weight files depend on beside the checkpoint and their layout."""
    if recipe.calibration is None or text is None:
        return {}
    return {"calibration": digest_of(recipe.calibration.model_dump(), text.sha256)}


def calibrate(work: Work, checkpoint: Checkpoint, recipe: Recipe, text: Windows) -> None:
    """Make the files of the layers, and of a head with weights of its own, and calibration.json.

    Raises:
        UserError: a weight fits no number of its format, or the text drives a layer to NaN or infinity.
        WorkError: a layer does not fit into memory.
    """
    from ernie_export.reference.layers import LayeredReference

    settings, reference = recipe.calibration, LayeredReference(checkpoint)
    assert settings
    stages = calibrated_files(read_layout(work.folder / FILE), recipe)
    more = calibration_inputs(recipe, text)
    key = digest_of(more, [inputs(file, checkpoint) for file in stages], environment.software())
    journal = Journal(work.folder.parent / "calibration", key)
    now = journal.read()
    made = now and all(
        work.stands(file.path, inputs(file, checkpoint) | more) for file in stages[: now.layer]
    )
    if now is None or not made:
        now = Progressed(0, reference.embed(text.ids), [])
    total = sum(bytes_read(file, checkpoint) for file in stages[now.layer :])
    with (
        work.progress.step("Calibrate", len(stages) - now.layer, "layers") as layers,
        work.progress.step("Quantize and write", total, "B") as step,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        for number in range(now.layer, len(stages)):
            file = stages[number]
            work.forget(file.path)  # how it fared would not be known
            rounding = Rounding(checkpoint, observed(reference, number, now.hidden), settings)
            make_weight_file(work, checkpoint, recipe.parts, file, pool, step, rounding.pack, **more)
            now = Progressed(number + 1, now.hidden, [*now.tensors, *rounding.tensors()])
            journal.write(now)
            layers.advance()
    work.make_bytes(CalibrationRecord.FILE, CalibrationRecord.of(settings, text, now.tensors).render())


def calibrated_files(files: list[WeightFile], recipe: Recipe) -> list[WeightFile]:
    """In the order in which a token meets them; a head that shares the embedding's weights is none."""
    layers = sorted((file for file in files if "/layer-" in file.path), key=lambda file: file.path)
    head = [file for file in files if any(stored.name == "head.weight" for stored in file.tensors)]
    return [*layers, *(head if recipe.parts.head.block_size else [])]
