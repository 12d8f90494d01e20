"""One engine, one reference, one sample: everything that is measured, segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.errors import WorkError
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from ernie_export.validate import metrics
from ernie_export.validate.consistency import WATCHED, Values, consistency_metrics, play, plays
from ernie_export.validate.expected import expected
from ernie_export.validate.operators import (
    cached_feeding,
    compare_cached,
    compare_layers,
    compare_operators,
    largest_activation,
    layer_outputs,
    operator_metrics,
    relative_error,
    run_given,
    worst,
)
from ernie_export.validate.probes import probe_names
from ernie_export.validate.report import Continuation, Histogram, layer_report
from ernie_export.validate.segments import LOGITS, Segment, Want
from ernie_export.validate.selfcheck_gatherer import Gatherer
from ernie_export.validate.weights import compare_weights, weight_metrics

if TYPE_CHECKING:
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.engine.interface import Engine
    from ernie_export.generate.tokenizer import TextTokenizer
    from ernie_export.generate.windows import Windows
    from ernie_export.progress import Step
    from ernie_export.recipe import Recipe
    from ernie_export.reference.layers import LayeredReference
    from ernie_export.validate.findings import Findings
    from ernie_export.validate.gates import Bounds
    from ernie_export.validate.metrics import LogitsComparison, RoutingComparison
    from ernie_export.validate.sample import Sample
    from ernie_export.validate.selfcheck import SelfCheck

Array = np.ndarray[Any, Any]
States = Mapping[str, Array]
LARGEST_FP16 = float(np.finfo(np.float16).max)


class Trial:
    def __init__(
        self,
        folder: Path,
        graph: str,
        recipe: Recipe | None,
        windows: Windows,
        sample: Sample,
        found: Findings,
    ):
        """`recipe`: how the weights are stored, where that is known."""
        self._folder, self._graph, self._recipe = folder, graph, recipe
        self._ids, self._sample, self._found = windows.ids, sample, found
        self._heads = [ids[: sample.decode_tokens].tolist() for ids in self._ids]
        self._plays = plays(self._heads, sample.batch)
        # The states between the layers, of the first window: the reference's, the engine's where it is fed
        # with the reference's before each layer, and where it is left alone.
        self._wanted: dict[str, Array] = {}
        self._fed: dict[str, Array] = {}
        self._free: dict[str, Array] = {}
        # What the last segment made, of each window and of each play.
        self._chain: list[Array] = []
        self._played: dict[str, Values] = {}
        self._logits: list[LogitsComparison] = []
        self._routing: dict[int, list[RoutingComparison]] = {}
        self._reached: dict[str, Array] = {}
        self._inside: dict[str, float] = {}
        self._gatherer = Gatherer(self._ids)

    def compare_weights(self, checkpoint: Checkpoint) -> None:
        """What is stored against the checkpoint, where the folder says in which formats it is stored."""
        if self._recipe is None:
            self._found.notes.append("The weights were not compared: the folder holds no recipe.toml")
            return
        with self._found.timed("weights"), self._found.progress.step("Validate: weights", None, "B") as step:
            self._found.weights = compare_weights(self._folder, self._graph, checkpoint, self._recipe, step)
        self._found.metrics |= weight_metrics(self._found.weights)
        self._found.claims.append("every stored weight")

    def run(self, segments: Sequence[Segment], wants: Generator[Want]) -> bool:
        """Every segment against what is wanted of it; whether the engine's logits are all finite."""
        with self._found.progress.step("Validate", len(segments) * (4 + len(self._ids))) as step:
            for segment in segments:
                with self._found.timed("reference"):
                    want = next(wants)
                step.advance()
                finite = self._measure(segment, want, step)
            wants.close()  # lets go of the reference's head
        self._summarize()
        if not finite:
            self._found.notes.append("Nothing more was measured: the engine's logits are not all finite")
            return False
        self._found.metrics |= consistency_metrics(self._played)
        self._found.claims += [f"decode of {len(self._heads[0])} tokens", f"a batch of {self._sample.batch}"]
        return True

    def _measure(self, segment: Segment, want: Want, step: Step) -> bool:
        with self._found.timed("operators"):
            self._compare_operators(segment, want)
        step.advance()
        with self._found.timed("windows"):
            watched = self._compare_windows(segment, want, step)
        step.advance()
        finite = not any(window.non_finite.any() for window in self._logits)
        if finite:
            with self._found.timed("consistency"):
                self._play(segment, watched)
        step.advance()
        return finite

    def _compare_operators(self, segment: Segment, want: Want) -> None:
        """Each operator alone, fed with the reference's values: at once, and over the cache."""
        ids, values = self._ids[0], _with_entry(segment, want)
        inner = [name for name in want.states if name != LOGITS]
        engine = segment.open(inner, inner)
        right = want.states
        if self._recipe is not None:
            right, inside = expected(self._folder, self._graph, self._recipe.parts, ids, want.states)
            self._inside |= inside
        at_once = compare_operators(right, run_given(engine, ids, values))
        cut = compare_cached(right, run_given(engine, ids, values, cached_feeding(len(ids))))
        self._found.operators += worst([*at_once, *cut])
        for name, state in want.states.items():
            if np.issubdtype(state.dtype, np.floating):
                self._reached[name] = np.abs(state).max(keepdims=True)

    def _compare_windows(self, segment: Segment, want: Want, step: Step) -> Engine:
        """What each layer adds, and the engine left to itself on every window: routing, and logits at the end.

        Returns the engine that shows its routing.
        """
        from ernie_export.validate import runners

        outputs = layer_outputs(want.states)
        routers = probe_names(list(want.routing))
        engine = segment.open(routers if segment.sealed else [*outputs, *routers], ())
        fed = engine if segment.entry else segment.open(outputs, outputs)
        shown = run_given(fed, self._ids[0], _with_entry(segment, want))
        chain = runners.Chain(self._chain)
        seen = self._gatherer.watching(want)
        compared = runners.compare(seen, engine, segment, chain, self._ids, step)
        self._chain, free = chain.after, chain.first
        if segment.sealed:
            free = run_given(segment.open(outputs, ()), self._ids[0], {})
        for name in outputs:
            self._wanted[name], self._fed[name] = want.states[name], shown[name]
            self._free[name] = free[name]
        self._logits += [window.logits for window in compared if window.logits]
        for layer in want.routing:
            self._routing[layer] = [window.routing[layer] for window in compared]
        return engine

    def _play(self, segment: Segment, watched: Engine) -> None:
        """The engine as it ships, nothing of it shown but where it is cut, beside the one that was watched."""
        engine = segment.open((), ())
        self._played = {
            title: play(segment, watched if title == WATCHED else engine, feeds, self._played.get(title))
            for title, feeds in self._plays.items()
        }

    def _summarize(self) -> None:
        """The numbers of all segments together."""
        found, (count, tokens) = self._found, self._ids.shape
        # What goes wrong over the cache alone is no operator's fault: those come first.
        found.operators.sort(key=lambda error: error.kind == "cache")
        found.drift = compare_layers(self._wanted, self._fed, self._free)
        found.metrics |= operator_metrics(found.operators)
        self._note_largest(*largest_activation(self._reached, self._inside, LARGEST_FP16))
        found.metrics |= metrics.logits_metrics(self._logits)
        found.kl_histogram = Histogram(
            edges=metrics.KL_EDGES.tolist(), counts=metrics.kl_counts(self._logits).tolist()
        )
        if every := [comparison for compared in self._routing.values() for comparison in compared]:
            found.metrics |= metrics.routing_metrics(every)
        found.layers += [
            layer_report(layer, metrics.routing_metrics(compared), metrics.expert_metrics(compared))
            for layer, compared in self._routing.items()
        ]
        found.claims += [
            f"every operator alone, on {tokens} tokens",
            f"logits and routing of {count} windows of {tokens} tokens",
        ]

    def selfcheck(self, gates: Mapping[str, Bounds]) -> SelfCheck:
        """What a device asks of this engine, of which `gates` apply; once all segments were run."""
        return self._gatherer.made(gates, self._logits, self._routing)

    def _note_largest(self, name: str, value: float) -> None:
        self._found.metrics["activations.largest"] = value
        self._found.largest = name
        if value > LARGEST_FP16:
            self._found.notes.append(
                f"Activations reach {value:.3g}, from {name} on beyond fp16's {LARGEST_FP16:.0f}: "
                "an engine that computes in fp16 would overflow"
            )

    def continue_greedily(
        self, opened: Callable[[], Engine] | None, reference: LayeredReference, tokenizer: TextTokenizer
    ) -> None:
        """Where the reference, fed with the engine's own text, would first have chosen otherwise; and what
        the reference's layers make of the states that the engine had, in the same pass over its layers."""
        prompts, texts = self._texts(opened)
        rows = [[*prompt, *text[:-1]] for prompt, text in zip(prompts, texts, strict=True)]
        with (
            self._found.timed("greedy"),
            self._found.progress.step("Validate: greedy", reference.num_layers) as step,
        ):
            chosen = self._on_the_engines_values(reference, rows, step)
        for prompt, text, choices in zip(prompts, texts, chosen, strict=True):
            choices = choices[len(prompt) - 1 :]
            same = metrics.common_prefix(choices, text)
            self._found.continuations.append(
                Continuation(
                    prompt=tokenizer.decode(prompt),
                    reference=tokenizer.decode(choices[: same + 1]),
                    export=tokenizer.decode(text),
                    agreement=same / len(text),
                )
            )
        if texts:
            agreements = [continuation.agreement for continuation in self._found.continuations]
            self._found.metrics["greedy.agreement"] = float(np.mean(agreements))
            self._found.metrics["greedy.agreement_min"] = min(agreements)
            self._found.claims.append(
                f"greedy continuation of {len(texts)} prompts by {self._sample.new_tokens} tokens"
            )

    def _texts(self, opened: Callable[[], Engine] | None) -> tuple[list[list[int]], list[list[int]]]:
        """The prompts, and what the engine makes of them; nothing where it cannot. It is let go at the end:
        the reference's layers come next."""
        if opened is None:
            return [], []
        sample = self._sample
        windows = self._ids[:: max(1, len(self._ids) // sample.prompts)][: sample.prompts]
        prompts = [ids[: sample.prompt_tokens].tolist() for ids in windows]
        with self._found.timed("greedy"):
            try:
                made = generate(opened(), prompts, sample.new_tokens, Sampling(), frozenset())
            except WorkError as error:
                self._found.notes.append(f"No greedy continuation: {error.cause}")
                return [], []
        return prompts, [generation.token_ids for generation in made]

    def _on_the_engines_values(
        self, reference: LayeredReference, rows: list[list[int]], step: Step
    ) -> list[list[int]]:
        """The reference's likeliest token behind each token of `rows`, equally long."""
        hidden = reference.embed(np.array(rows)) if rows else None
        for drift, (entry, exit) in zip(self._found.drift, pairwise(self._free.values()), strict=True):
            with reference.layer(drift.layer) as layer:
                if hidden is not None:
                    hidden = layer.run(hidden).hidden
                own = layer.run(entry[None]).hidden[0]
            drift.own_error = relative_error(own - entry, exit - entry)
            step.advance()
        if hidden is None:
            return []
        with reference.head() as head:
            return [head.logits(row).argmax(-1).tolist() for row in hidden]


def _with_entry(segment: Segment, want: Want) -> dict[str, Array]:
    """The reference's values of the segment and the one before it."""
    before = {} if segment.entry is None or want.entry is None else {segment.entry: want.entry}
    return {**before, **want.states}
