"""Validation: an engine against transformers' own model of the checkpoint it was built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import ernie_export
from ernie_export.calibrate.record import CalibrationRecord
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.engine import native_library
from ernie_export.engine.compatibility import runs_here
from ernie_export.engine.found import driver
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.interface import Engine
from ernie_export.engine.providers import ON_GPUS
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.generate.windows import Windows
from ernie_export.progress import Progress, Silent
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.reference.layers import LayeredReference
from ernie_export.reference.recording import Kept, Recording
from ernie_export.validate import environment, identity, segments
from ernie_export.validate.applicable import OVER_CACHE, applicable, in_half_precision, with_attention
from ernie_export.validate.fault import first_fault
from ernie_export.validate.findings import Findings
from ernie_export.validate.gates import Bounds, evaluate
from ernie_export.validate.report import (
    Claim,
    DriftReport,
    Inputs,
    OperatorReport,
    Report,
    Source,
    WeightReport,
)
from ernie_export.validate.sample import Sample, text_windows
from ernie_export.validate.sizes import sizes
from ernie_export.validate.trial import Trial
from ernie_export.validate.way import Way, choose

Opener = Callable[[Path, Sequence[str], Sequence[str]], Engine]
"""Opens the engine in a folder so that it shows the first named values, and is given the second."""

#: Runtimes whose engines compute in fp16, and show and take no value but those of the interface and the routers.
#: What else is asked is asked of the graph they are built from; and all of it where the engine cannot run.
SEALED = ("tensorrt", "tensorrt_rtx")
ROUTING = ".routing."


def validate(
    folder: Path,
    checkpoint: Path,
    gates: Mapping[str, Bounds],
    progress: Progress | None = None,
    *,
    recipe: str,
    target: str,
    sample: Sample | None = None,
    opener: Opener | None = None,
    way: Way | None = None,
    keep: Path | None = None,
    selfcheck: Path | None = None,
) -> Report:
    """Measure the engine in `folder` against `checkpoint`; `recipe` and `target` are names for the report.

    The reference is in memory one layer at a time; the engine is run whole, or layer by layer too.

    Args:
        way: how the engine is run; None for whole where that fits into the memory that is free.
        keep: a folder where what the reference computes is kept for another export of the checkpoint.
        selfcheck: a file for what a device is to ask of the engine, written if its logits are finite.

    Raises:
        UserError: the folder, the checkpoint or the sample's text cannot be read, or the two cannot be
            compared: another tokenizer, vocabulary or set of MoE layers.
        WorkError: transformers does not load the weights, or there is no memory for one layer.
    """
    progress = progress or Silent()
    found = Findings(progress)
    identity.require_same_tokenizer(folder, checkpoint)
    source = Checkpoint.open(checkpoint)
    info = EngineInfo.read(folder)
    with found.timed("reference"):
        reference = LayeredReference(source)
    identity.require_same_shape(info, reference)
    rows = info.requires.batch if info.requires and runs_here(folder, info) else None
    sample = (sample or Sample()).within(info.max_context, rows)
    tokenizer = TextTokenizer.read(folder)
    windows = text_windows(sample, tokenizer.encode)
    stored = folder / "recipe.toml"
    written = Recipe.read(stored) if stored.is_file() else None
    parts = written.parts if written else None
    if opener or (info.runtime in ON_GPUS and not graph_alone(info)):  # parts of a graph are run on the CPU
        way = "whole"
    chosen = choose(folder, info.graph, parts, target, reference, windows, sample.batch, way)
    opener = opener or _open_engine
    trial = Trial(folder, info.graph, written, windows, sample, found)
    trial.compare_weights(source)
    recording = Recording(reference, windows.ids, Kept(keep, source.fingerprint(progress)) if keep else None)
    if chosen.way == "whole":
        sealed = opener is _open_engine and info.runtime in SEALED and runs_here(folder, info)
        finite = trial.run(segments.whole(folder, opener, sealed), segments.wanted_at_once(recording))
    else:
        finite = trial.run(segments.layer_by_layer(folder, info), segments.wanted_by_layer(recording))
        found.notes.append(chosen.note())
    if keep:
        found.notes.append(_kept(recording, keep))
    if record := CalibrationRecord.read(folder):
        found.notes.append(record.summary())
    if finite:
        opened = partial(opener, folder, (), ()) if chosen.opens_whole else None
        trial.continue_greedily(opened, reference, tokenizer)
    found.metrics["memory.peak_bytes"] = float(environment.peak_memory())
    if info.runtime in SEALED or graph_alone(info):
        what = "Operators and layers were tried in" if runs_here(folder, info) else "What ran is"
        missing = "" if runs_here(folder, info) else ": the engine itself has not run"
        found.notes.append(
            f"{what} the graph that the engine is built from, in ONNX Runtime on this machine's CPU{missing}"
        )
    gates = with_attention(gates)
    if info.runtime in (*SEALED, *ON_GPUS):
        gates = in_half_precision(gates)
    elif native_library.takes_over(folder / info.graph):
        gates = in_half_precision(gates, OVER_CACHE)
        found.notes.append(
            "Native operators ran: attention, over an fp16 KV cache, is held to fp16's last digits"
        )
    asked, idle = applicable(gates, source.config, parts, found.metrics, chosen.opens_whole)
    found.notes += idle
    results = evaluate(found.metrics, asked)
    if selfcheck and finite:
        trial.selfcheck(asked).write(selfcheck)
    fault = first_fault(results, found.weights, found.operators, found.largest)
    return Report(
        tool=f"ernie-export {ernie_export.__version__}",
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        checkpoint=Source(
            name=checkpoint.resolve().name,
            fingerprint=source.fingerprint(progress),
            architecture=source.config.architecture,
        ),
        recipe=recipe,
        target=target,
        verdict="passed" if all(result.passed for result in results) else "failed",
        fault=fault,
        gates=results,
        metrics=found.metrics,
        layers=found.layers,
        drift=[DriftReport(**asdict(drift)) for drift in found.drift],
        operators=[OperatorReport(**asdict(error)) for error in found.operators],
        weights=[WeightReport(**asdict(error)) for error in found.weights],
        kl_histogram=found.kl_histogram,
        continuations=found.continuations,
        inputs=_inputs(windows),
        sizes=sizes(folder / info.graph),
        timings={stage: round(seconds, 3) for stage, seconds in found.timings.items()},
        software=environment.software(),
        machine=environment.machine(),
        claims=[Claim(claim=claim, where="ran here") for claim in found.claims],
        notes=found.notes,
    )


def _open_engine(folder: Path, probes: Sequence[str], given: Sequence[str]) -> Engine:
    from ernie_export.engine.open import open_engine, open_graph

    info = EngineInfo.read(folder)
    inside = given or any(ROUTING not in name for name in probes)
    of_graph = info.runtime in SEALED and (inside or not runs_here(folder, info))
    opener = open_graph if of_graph or graph_alone(info) else open_engine
    return opener(folder, probes=probes, given=given)


def graph_alone(info: EngineInfo) -> bool:
    """It needs a GPU, and there is none: its graph is run in its place."""
    return info.runtime in ON_GPUS and driver()[1] is None


def _inputs(windows: Windows) -> Inputs:
    count, tokens = windows.ids.shape
    return Inputs(source=windows.source, windows=count, tokens=tokens, sha256=windows.sha256)


def _kept(recording: Recording, folder: Path) -> str:
    layers = recording.reference.num_layers
    return (
        f"What the reference computes is kept, {size(recording.kept_bytes)} in {folder}; "
        f"{recording.read} of {layers} layers were there already"
    )
