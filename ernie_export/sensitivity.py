"""How much each part of each layer suffers from fewer bits, measured on transformers' own model.

A trial is the model with one group of matrices quantized and dequantized, all else as published; its
loss is the KL divergence of its next tokens from the published model's, the mean over the tokens of a
text.  One decoder layer is in memory at a time: every trial begun in an earlier layer runs through it
on hidden states of its own, so the checkpoint is read once for all trials together.  Those states are
kept in the cache folder behind every layer, so that a killed measurement goes on there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ernie_export import atomic
from ernie_export.checkpoint.fingerprints import cache_folder
from ernie_export.checkpoint.layout import EMBEDDING, HEAD, part_of
from ernie_export.errors import UserError
from ernie_export.plan.bits import Group, groups, is_one, options
from ernie_export.quantize.formats import NotFinite, dequantize, quantize
from ernie_export.recipe import PartFormat, Parts
from ernie_export.reference.layers import LayeredReference, ReferenceHead, ReferenceLayer
from ernie_export.trials import Reached, Trial, Unfinished
from ernie_export.validate import environment
from ernie_export.validate.metrics import compare_logits

if TYPE_CHECKING:
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.progress import Progress

Array = np.ndarray[Any, Any]
AT_ONCE = 256
"""Tokens whose logits are computed at once."""


class Measured(BaseModel):
    """The loss of one trial."""

    model_config = ConfigDict(frozen=True)

    part: str
    layer: int | None
    form: PartFormat
    kl: float
    """Mean over the tokens, nats."""


class Sensitivity(BaseModel):
    model_config = ConfigDict(frozen=True)

    text: str
    """The name of the text that it was measured on."""
    tokens: int
    measured: list[Measured]

    def losses(self) -> dict[Group, dict[PartFormat, float]]:
        found: dict[Group, dict[PartFormat, float]] = {}
        for one in self.measured:
            found.setdefault(Group(one.part, one.layer), {})[one.form] = one.kl
        return found


def sensitivity(
    checkpoint: Checkpoint, parts: Parts, ids: Array, text: str, progress: Progress
) -> Sensitivity:
    """Every group that `parts` leaves to be chosen, in every format it may have, on tokens ids [W,S].

    What was measured once of the same files, tokens and software is remembered in the cache folder, and
    how far a measurement has come.

    Raises:
        WorkError: a layer does not fit into memory, or transformers cannot run the checkpoint.
        UserError: a weight is NaN or infinite.
    """
    asked = [(group, options(parts.of(group.part))) for group in groups(checkpoint.config, parts)]
    told = [[*group, *(form.model_dump() for form in forms)] for group, forms in asked]
    inputs = [checkpoint.identity(), sha256(ids.tobytes()).hexdigest(), told, environment.software()]
    kept = cache_folder() / "sensitivity" / f"{sha256(json.dumps(inputs).encode()).hexdigest()}.json"
    with suppress(OSError, ValidationError):
        return Sensitivity.model_validate_json(kept.read_bytes())
    unfinished = Unfinished(kept.with_suffix(".npz"))
    measured = list(measure(checkpoint, parts, ids, progress, unfinished))
    found = Sensitivity(text=text, tokens=ids.size, measured=measured)
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(kept, found.model_dump_json().encode())
    unfinished.end()
    return found


def measure(
    checkpoint: Checkpoint, parts: Parts, ids: Array, progress: Progress, unfinished: Unfinished
) -> Iterator[Measured]:
    """The loss of every trial; it goes on where `unfinished` says, and tells it how far it has come."""
    reference = LayeredReference(checkpoint)
    asked = {group: options(parts.of(group.part)) for group in groups(checkpoint.config, parts)}
    at = unfinished.read() or Reached(
        0, reference.embed(ids), list(of_the_embedding(checkpoint, parts, ids, asked))
    )
    run_through(reference, at, asked, progress, unfinished)
    trials = at.trials + [
        Trial(group, form, at.clean, with_head=True)
        for group, forms in asked.items()
        if group.part == "head"
        for form in forms
    ]
    with (
        reference.head() as head,
        progress.step("Compare with what is published", len(trials), "trials") as step,
    ):
        for one in compare(head, at.clean, trials, ids):
            step.advance()
            yield one


def run_through(
    reference: LayeredReference,
    at: Reached,
    asked: dict[Group, list[PartFormat]],
    progress: Progress,
    unfinished: Unfinished,
) -> None:
    """The layers that are left, `at` with them: every trial that was begun, and those that begin in each."""
    runs = sum(
        (reference.num_layers - max(group.layer or 0, at.layer)) * len(forms)
        for group, forms in asked.items()
        if group.part != "head"
    )
    left = range(at.layer, reference.num_layers)
    with progress.step("Measure sensitivity", runs + len(left), "runs") as step:
        for number in left:
            with reference.layer(number) as layer:
                for trial in at.trials:
                    layer.run(trial.hidden, out=trial.hidden)
                    step.advance()
                for group, forms in asked.items():
                    if group.layer == number:
                        for form in forms:
                            at.trials.append(Trial(group, form, run_quantized(layer, group, form, at.clean)))
                            step.advance()
                layer.run(at.clean, out=at.clean)
                step.advance()
            at.layer = number + 1
            unfinished.write(at)


def of_the_embedding(
    checkpoint: Checkpoint, parts: Parts, ids: Array, asked: dict[Group, list[PartFormat]]
) -> Iterator[Trial]:
    """Only the rows of tokens in the text are quantized: rows do not share a scale."""
    used, places = np.unique(ids, return_inverse=True)
    rows = checkpoint.array(EMBEDDING)[used]
    tied = is_one(checkpoint.config, parts)
    for form in asked.get(Group("embedding", None), ()):
        yield Trial(Group("embedding", None), form, rounded(rows, form)[places.reshape(ids.shape)], tied)


def run_quantized(layer: ReferenceLayer, group: Group, form: PartFormat, hidden: Array) -> Array:
    """hidden [W,S,H] through the layer with one group in another format; the layer is left as it was."""
    names = [name for name in layer.weights if part_of(name) == group.part]

    def put(name: str) -> None:
        try:
            layer.weights[name][...] = rounded(layer.weights[name], form)
        except NotFinite as error:
            raise UserError(f"{name} holds NaN or infinity", "Fetch the checkpoint again.") from error

    each(put, names)
    result = layer.run(hidden).hidden
    each(layer.restore, names)
    return result


def compare(head: ReferenceHead, clean: Array, trials: Sequence[Trial], ids: Array) -> Iterator[Measured]:
    """The KL divergence of every trial; those of the published head first."""
    width = clean.shape[-1]
    ends = clean.reshape(-1, width)
    logits = [head.logits(ends[at : at + AT_ONCE]) for at in range(0, len(ends), AT_ONCE)]
    name = EMBEDDING if EMBEDDING in head.weights else HEAD
    published = head.weights[name].copy() if any(trial.with_head for trial in trials) else None
    for trial in sorted(trials, key=lambda trial: trial.with_head):
        if trial.with_head:
            assert published is not None
            head.weights[name][...] = rounded(published, trial.form)
        kl = np.concatenate(
            [
                compare_logits(
                    want,
                    head.logits(trial.hidden.reshape(-1, width)[at * AT_ONCE : (at + 1) * AT_ONCE]),
                    ids.reshape(-1)[at * AT_ONCE : (at + 1) * AT_ONCE],
                ).kl
                for at, want in enumerate(logits)
            ]
        )
        yield Measured(part=trial.group.part, layer=trial.group.layer, form=trial.form, kl=float(kl.mean()))


def rounded(weight: Array, form: PartFormat) -> Array:
    """What the stored form of a matrix [N,K] stands for, float32."""
    return dequantize(quantize(weight, form), form)


def each(work: Callable[[str], None], names: Sequence[str]) -> None:
    """As many at once as there are cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(work, names))
