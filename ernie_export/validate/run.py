"""Validation: an engine against transformers' own model of the checkpoint it was built from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import ernie_export
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.engine.interface import Engine, EngineInfo
from ernie_export.errors import WorkError
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.progress import Progress, Silent, Step
from ernie_export.recipe import Recipe
from ernie_export.reference.transformers_model import Reference
from ernie_export.validate import environment, identity, metrics
from ernie_export.validate.consistency import batch_difference, decode_difference, prefill
from ernie_export.validate.expected import expected
from ernie_export.validate.fault import first_fault
from ernie_export.validate.gates import Bounds, evaluate
from ernie_export.validate.operators import (
    OperatorError,
    cached_feeding,
    compare_cached,
    compare_layers,
    compare_operators,
    largest_activation,
    layer_outputs,
    operator_metrics,
    run_given,
    worst,
)
from ernie_export.validate.report import (
    Claim,
    Continuation,
    DriftReport,
    Histogram,
    Inputs,
    LayerReport,
    OperatorReport,
    Report,
    Source,
    WeightReport,
    layer_report,
)
from ernie_export.validate.sample import Sample, text_windows
from ernie_export.validate.sizes import sizes
from ernie_export.validate.weights import WeightError, compare_weights, weight_metrics

Array = np.ndarray[Any, Any]
SHOWN = 8
"""Tokens of the reference's text that are shown behind the first difference."""
LARGEST_FP16 = float(np.finfo(np.float16).max)
Opener = Callable[[Path, Sequence[str], Sequence[str]], Engine]
"""Opens the engine in a folder so that it shows the first named values, and is given the second."""


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
) -> Report:
    """Measure the engine in `folder` against `checkpoint`; `recipe` and `target` are names for the report.

    Raises:
        UserError: the folder, the checkpoint or the sample's text cannot be read.
        WorkError: the two cannot be compared: another tokenizer, vocabulary or set of MoE layers, or
            weights that transformers does not load.
    """
    progress = progress or Silent()
    found = _Findings(progress)
    identity.require_same_tokenizer(folder, checkpoint)
    source = Checkpoint.open(checkpoint)
    with found.stage("reference"):
        reference = Reference.open(checkpoint)
    trial = _Trial(folder, reference, opener or _open_engine, sample or Sample(), found)
    trial.compare_weights(source)
    trial.run()
    found.metrics["memory.peak_bytes"] = float(environment.peak_memory())
    results = evaluate(found.metrics, _applicable(gates, reference, found.notes))
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
        drift=found.drift,
        operators=[OperatorReport(**asdict(error)) for error in found.operators],
        weights=[WeightReport(**asdict(error)) for error in found.weights],
        kl_histogram=found.kl_histogram,
        continuations=found.continuations,
        inputs=trial.inputs(),
        sizes=sizes(folder / trial.graph),
        timings={stage: round(seconds, 3) for stage, seconds in found.timings.items()},
        software=environment.software(),
        machine=environment.machine(),
        claims=[Claim(claim=claim, where="ran here") for claim in found.claims],
        notes=found.notes,
    )


def _open_engine(folder: Path, probes: Sequence[str], given: Sequence[str]) -> Engine:
    from ernie_export.engine.open import open_engine

    return open_engine(folder, probes=probes, given=given)


ROUTED = ("operators.routing_error", "operators.experts_error", "operators.shared_error")


def _applicable(gates: Mapping[str, Bounds], reference: Reference, notes: list[str]) -> dict[str, Bounds]:
    """All gates, but those on routing where the checkpoint itself has no router."""
    if reference.moe_layers:
        return dict(gates)
    idle = [name for name in gates if name.startswith("routing.") or name in ROUTED]
    notes += [f"{name} does not apply: the checkpoint has no experts" for name in idle]
    return {name: gate for name, gate in gates.items() if name not in idle}


@dataclass
class _Findings:
    progress: Progress
    metrics: dict[str, float] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    weights: list[WeightError] = field(default_factory=list)
    operators: list[OperatorError] = field(default_factory=list)
    largest: str = ""
    """Where activations go beyond fp16, or are largest."""
    drift: list[DriftReport] = field(default_factory=list)
    kl_histogram: Histogram | None = None
    continuations: list[Continuation] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    claims: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
        begun = time.perf_counter()
        with self.progress.step(f"Validate: {name}", total, unit) as step:
            yield step
        self.timings[name] = time.perf_counter() - begun


class _Trial:
    """One engine, one reference, one sample."""

    def __init__(self, folder: Path, reference: Reference, opener: Opener, sample: Sample, found: _Findings):
        info = EngineInfo.read(folder)
        identity.require_same_shape(info, reference)
        self.graph = info.graph
        self._folder, self._reference, self._open, self._found = folder, reference, opener, found
        recipe = folder / "recipe.toml"
        self._parts = Recipe.read(recipe).parts if recipe.is_file() else None
        self._sample = sample.within(info.max_context)
        self._tokenizer = TextTokenizer.read(folder)
        self._windows = text_windows(self._sample, self._tokenizer.encode)

    def inputs(self) -> Inputs:
        count, tokens = self._windows.ids.shape
        return Inputs(source=self._windows.source, windows=count, tokens=tokens, sha256=self._windows.sha256)

    def compare_weights(self, checkpoint: Checkpoint) -> None:
        """What is stored against the checkpoint, where the folder says in which formats it is stored."""
        if self._parts is None:
            self._found.notes.append("The weights were not compared: the folder holds no recipe.toml")
            return
        with self._found.stage("weights", None, "B") as step:
            self._found.weights = compare_weights(self._folder, self.graph, checkpoint, self._parts, step)
        self._found.metrics |= weight_metrics(self._found.weights)
        self._found.claims.append("every stored weight")

    def run(self) -> None:
        self._compare_operators()
        watched = self._compare_windows()
        if self._found.metrics["logits.non_finite"]:
            self._found.notes.append("Nothing more was measured: the engine's logits are not all finite")
            return
        with self._found.stage("open"):
            engine = self._open(self._folder, (), ())
        self._check_consistency(engine, watched)
        self._continue_greedily(engine)

    def _compare_operators(self) -> None:
        """Each operator and each layer alone, fed with the reference's values; and left to themselves."""
        ids = self._windows.ids[0]
        with self._found.stage("operators", 3) as step:
            want = self._reference.states(ids)
            inner = [name for name in want if name != "logits"]
            outputs = layer_outputs(want)
            engine = self._open(self._folder, inner, inner)
            right = (
                want if self._parts is None else expected(self._folder, self.graph, self._parts, ids, want)
            )
            at_once = compare_operators(right, run_given(engine, ids, want))
            cut = compare_cached(right, run_given(engine, ids, want, cached_feeding(len(ids))))
            self._found.operators = worst([*at_once, *cut])
            step.advance()
            added = run_given(self._open(self._folder, outputs, outputs), ids, want)
            step.advance()
            free = run_given(self._open(self._folder, outputs, ()), ids, {})
            step.advance()
        self._found.drift = [DriftReport(**asdict(drift)) for drift in compare_layers(want, added, free)]
        self._found.metrics |= operator_metrics(self._found.operators)
        self._note_largest(*largest_activation(want, LARGEST_FP16))
        self._found.claims.append(f"every operator alone, on {len(ids)} tokens")

    def _note_largest(self, name: str, value: float) -> None:
        self._found.metrics["activations.largest"] = value
        self._found.largest = name
        if value > LARGEST_FP16:
            self._found.notes.append(
                f"Activations reach {value:.3g}, from {name} on beyond fp16's {LARGEST_FP16:.0f}: "
                "an engine that computes in fp16 would overflow"
            )

    def _compare_windows(self) -> Array:
        """Logits, routing, perplexity: with the routers of the engine shown.

        Returns its logits for the head of the first window, [tokens,V].
        """
        from ernie_export.validate import runners

        layers = self._reference.moe_layers
        with self._found.stage("windows", len(self._windows.ids)) as step:
            engine = self._open(self._folder, runners.probe_names(layers), ())
            compared = runners.compare(self._reference, engine, self._windows.ids, step)
            watched = prefill(engine, self._heads()[0])
        logits = [window.logits for window in compared]
        self._found.metrics |= metrics.logits_metrics(logits)
        self._found.kl_histogram = Histogram(
            edges=metrics.KL_EDGES.tolist(), counts=metrics.kl_counts(logits).tolist()
        )
        by_layer = {layer: [window.routing[layer] for window in compared] for layer in layers}
        if by_layer:
            every = [comparison for comparisons in by_layer.values() for comparison in comparisons]
            self._found.metrics |= metrics.routing_metrics(every)
        self._found.layers += [
            layer_report(layer, metrics.routing_metrics(comparisons), metrics.expert_metrics(comparisons))
            for layer, comparisons in by_layer.items()
        ]
        count, tokens = self._windows.ids.shape
        self._found.claims.append(f"logits and routing of {count} windows of {tokens} tokens")
        return watched

    def _heads(self) -> list[list[int]]:
        """The beginning of each window."""
        return [ids[: self._sample.decode_tokens].tolist() for ids in self._windows.ids]

    def _check_consistency(self, engine: Engine, watched: Array) -> None:
        """The engine as it ships, nothing of it shown, against what was `watched`, and against itself."""
        heads, rows = self._heads(), self._sample.batch
        with self._found.stage("consistency"):
            shipped = prefill(engine, heads[0])
            self._found.metrics["probes.max_difference"] = metrics.max_difference([watched], [shipped])
            self._found.metrics["decode.max_difference"] = decode_difference(engine, heads[0])
            batch = [heads[row % len(heads)] for row in range(rows)]
            self._found.metrics["batch.max_difference"] = batch_difference(engine, batch)
        self._found.claims += [f"decode of {len(heads[0])} tokens", f"a batch of {rows}"]

    def _continue_greedily(self, engine: Engine) -> None:
        tokens = self._sample.new_tokens
        windows = self._windows.ids[:: max(1, len(self._windows.ids) // self._sample.prompts)]
        prompts = [ids[: self._sample.prompt_tokens].tolist() for ids in windows[: self._sample.prompts]]
        with self._found.stage("greedy", len(prompts)) as step:
            try:
                exported = [g.token_ids for g in generate(engine, prompts, tokens, Sampling(), frozenset())]
            except WorkError as error:
                self._found.notes.append(f"No greedy continuation: {error.cause}")
                return
            for prompt, export in zip(prompts, exported, strict=True):
                self._note_continuation(prompt, export)
                step.advance()
        agreements = [continuation.agreement for continuation in self._found.continuations]
        self._found.metrics["greedy.agreement"] = float(np.mean(agreements))
        self._found.metrics["greedy.agreement_min"] = min(agreements)
        self._found.claims.append(f"greedy continuation of {len(prompts)} prompts by {tokens} tokens")

    def _note_continuation(self, prompt: list[int], export: list[int]) -> None:
        """The reference's own text is the export's up to the first token that it would not have chosen,
        so one run over both finds where that is; from there it goes on alone, for a person to read."""
        logits = self._reference.run(np.array([prompt + export[:-1]])).logits[0]
        chosen = logits[len(prompt) - 1 :].argmax(-1).tolist()
        same = metrics.common_prefix(chosen, export)
        reference = chosen[: same + 1]
        if len(reference) < len(export):
            rest = min(SHOWN, len(export) - len(reference))
            reference += self._reference.greedy(prompt + reference, rest)
        self._found.continuations.append(
            Continuation(
                prompt=self._tokenizer.decode(prompt),
                reference=self._tokenizer.decode(reference),
                export=self._tokenizer.decode(export),
                agreement=same / len(export),
            )
        )
