"""What was measured, where and how, and whether it passed: report.json."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ernie_export.errors import UserError
from ernie_export.spelling import seal_of
from ernie_export.validate.document import Document
from ernie_export.validate.gates import GateResult

if TYPE_CHECKING:
    from ernie_export.validate.metrics import ExpertMetrics

Verdict = Literal["passed", "failed"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Claim(_Record):
    """Something said of the bundle, and where it was seen to be so."""

    claim: str
    where: Literal["planned", "built here", "ran here", "built on target", "ran on target"]


class Source(_Record):
    """The checkpoint."""

    name: str
    fingerprint: str
    architecture: str


class Inputs(_Record):
    """What both sides were given."""

    source: str
    """The name of the text."""
    windows: int
    tokens: int
    """Tokens a window."""
    sha256: str
    """Over the token ids of all windows, as little-endian int64."""


class LayerReport(_Record):
    """The routing of one MoE layer; the numbers as in metrics.routing_metrics."""

    layer: int
    agreement: float
    experts: float
    largest_changed_gap: float
    score_difference: float
    expert_agreement: list[float | None] = []
    """By expert, as in metrics.ExpertMetrics, and so are the next two."""
    expert_load_reference: list[float] = []
    expert_load: list[float] = []


class OperatorReport(_Record):
    """One operator alone, on the reference's inputs; the numbers as in operators.OperatorError."""

    name: str
    kind: str
    relative_error: float
    cosine: float
    expert: int | None


class WeightReport(_Record):
    """One stored tensor against the checkpoint; the numbers as in weights.WeightError."""

    name: str
    source: str
    relative_error: float
    misplaced: float
    block_error: float | None = None
    """None in reports from before it was measured."""


class DriftReport(_Record):
    """The hidden state behind one layer; the numbers as in operators.LayerDrift."""

    layer: int
    added_error: float
    added_cosine: float
    error: float
    cosine: float
    own_error: float | None = None
    """None: not measured."""


class Histogram(_Record):
    edges: list[float]
    """Ascending."""
    counts: list[int]
    """One more than edges: below the first, between each two, from the last on."""

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Self:
        ascending = all(low < high for low, high in pairwise([0.0, *self.edges, math.inf]))
        if len(self.edges) < 2 or not ascending:
            raise ValueError("the edges do not ascend from above 0")
        if len(self.counts) != len(self.edges) + 1 or min(self.counts) < 0 or not any(self.counts):
            raise ValueError("the counts do not fit the edges")
        return self


class Continuation(_Record):
    """One prompt and what both sides made of it."""

    prompt: str
    reference: str
    """Ends with the first token that differs."""
    export: str
    agreement: float
    """The part of the export's tokens before the first that the reference would not have chosen."""


class BaselineRow(_Record):
    """One metric against its value in the earlier report."""

    name: str
    before: float
    value: float | None
    """None: it was not measured this time."""
    bound: float
    """The worst that is allowed."""
    allowed: str
    """How the bound follows from `before`, as in baseline.Tolerance."""
    passed: bool


class BaselineReport(_Record):
    """An earlier report of the same checkpoint on the same inputs, and what has become of its numbers."""

    time: str
    recipe: str
    target: str
    verdict: Verdict
    seal: str
    rows: list[BaselineRow]


class Sizes(_Record):
    """Bytes."""

    files: dict[str, int]
    """The graph and its weight files."""
    parts: dict[str, int]
    """Weights by the part of the model they belong to."""


class PrefillReport(_Record):
    """A prompt into an empty cache, as in bench.speed.Prefill."""

    tokens: int
    seconds: float
    tokens_per_second: float
    highest_anonymous: int


class DecodeReport(_Record):
    """One token after another over a filled cache, as in bench.speed.Decode."""

    context: int
    tokens: int
    seconds: float
    fastest: float
    tokens_per_second: float
    bytes: int
    """That one token must read."""
    bytes_per_second: float
    share: float | None
    """Of the bandwidth measured in the same run."""


class SpeedReport(_Record):
    """Measured where the engine was built, on its target."""

    threads: int
    bandwidth: float | None
    """Bytes a second that the cores together read; None where there was no room to measure it."""
    memory: dict[str, int]
    """Bytes, `anonymous` and `mapped`, at the end."""
    prefill: list[PrefillReport]
    decode: list[DecodeReport]


class SummaryRow(NamedTuple):
    label: str
    value: str
    bound: str
    """Empty where nothing was asked."""
    passed: bool | None
    """None where nothing was asked."""


class Report(Document):
    FILE: ClassVar[str] = "report.json"
    KIND: ClassVar[str] = "report"
    REMEDY: ClassVar[str] = "Run `ernie-export validate` again."

    schema_version: Literal[1] = 1
    tool: str
    time: str
    """ISO 8601, UTC."""
    checkpoint: Source
    recipe: str
    target: str
    verdict: Verdict
    gates: list[GateResult]
    metrics: dict[str, float]
    baseline: BaselineReport | None = None
    """None: it was not compared with any."""
    fault: str | None = None
    """The first operator or tensor that is off, where a gate says that something is."""
    layers: list[LayerReport]
    drift: list[DriftReport] = Field(default_factory=list)
    operators: list[OperatorReport] = Field(default_factory=list)
    weights: list[WeightReport] = Field(default_factory=list)
    kl_histogram: Histogram | None = None
    """Tokens by the KL divergence of their logits, in nats; NaN is counted last."""
    continuations: list[Continuation]
    sample: str | None = None
    """What the engine said when it was built; None where none was asked."""
    inputs: Inputs
    sizes: Sizes
    timings: dict[str, float]
    """Seconds by stage."""
    speed: SpeedReport | None = None
    """None: it was not measured."""
    software: dict[str, str]
    machine: dict[str, str | int]
    claims: list[Claim]
    notes: list[str]
    manifest_sha256: str | None = None
    """Of the bundle's manifest.json; None before there is one."""
    seal: str = ""
    """SHA-256 of the report without its seal, as UTF-8 JSON with sorted keys and no spaces."""

    def sealed(self) -> Self:
        return self.model_copy(update={"seal": seal_of(json.loads(self.model_dump_json()))})

    def write(self, path: Path) -> None:
        """Write it, sealed, so that a killed process leaves the old report or the new one."""
        Document.write(self.sealed(), path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The report in a file; UserError where it is none, or was edited."""
        return cls.load(path)

    @classmethod
    def check(cls, content: dict[str, Any], path: Path) -> None:
        """That the seal is over this content; UserError where it is broken."""
        if content.get("seal") != seal_of(content):
            raise UserError(f"The report {path} was edited: its seal is broken", cls.REMEDY)

    def summary_rows(self) -> list[SummaryRow]:
        """What a person wants to know first: every metric in HEADLINES, and every gate."""
        gated = {gate.name: gate for gate in self.gates}
        names = [name for name in HEADLINES if name in self.metrics or name in gated]
        return [
            _summary_row(name, self.metrics.get(name), gated.get(name))
            for name in [*names, *(name for name in gated if name not in HEADLINES)]
        ]


HEADLINES = {
    "logits.kl_mean": "KL divergence, mean",
    "logits.kl_p99": "KL divergence, 99th percentile",
    "logits.same_top1": "Same likeliest token",
    "logits.max_difference": "Largest difference of a logit",
    "routing.agreement": "Same experts",
    "routing.largest_changed_gap": "Largest gap of a changed choice",
    "perplexity.reference": "Perplexity of the checkpoint",
    "perplexity.export": "Perplexity of the export",
    "perplexity.ratio": "Perplexity, export over checkpoint",
    "operators.exact_error": "Error of operators that must be exact",
    "operators.routing_error": "Error of the routers",
    "operators.core_error": "Error of attention itself",
    "operators.attention_error": "Error of attention's weights",
    "operators.experts_error": "Error of the experts, the worst of them",
    "operators.shared_error": "Error of the shared experts",
    "operators.dense_error": "Error of the dense layers",
    "operators.embedding_error": "Error of the embedding",
    "operators.head_error": "Error of the head",
    "operators.cache_error": "Error of attention over the cache",
    "activations.largest": "Largest activation of the checkpoint",
    "weights.misplaced": "Stored weights further off than rounding goes",
    "weights.relative_error": "Error of the stored weights",
    "weights.block_error": "Error of the stored weights, the worst block",
    "greedy.agreement": "Greedy text the same, mean",
    "decode.max_difference": "Prefill against decode",
    "batch.max_difference": "Alone against in a batch",
    "probes.max_difference": "Watched against as it ships",
    "logits.non_finite": "Logits that are no numbers",
    "latency.token_ms": "Milliseconds a token",
    "latency.prefill_ms": "Milliseconds for a prompt of the self-check",
}
PERCENT = ("logits.same_top1", "routing.agreement", "greedy.agreement", "weights.misplaced")


def shown(name: str, value: float | None) -> str:
    """A metric's value for a person."""
    if value is None:
        return "not measured"
    return f"{value:.2%}" if name in PERCENT else f"{value:.4g}"


def _summary_row(name: str, value: float | None, gate: GateResult | None) -> SummaryRow:
    bounds: list[str] = []
    if gate is not None:
        bounds = [f"≥ {shown(name, gate.min)}"] * (gate.min is not None) + [f"≤ {shown(name, gate.max)}"] * (
            gate.max is not None
        )
    passed = None if gate is None else gate.passed
    return SummaryRow(HEADLINES.get(name, name), shown(name, value), ", ".join(bounds), passed)


def layer_report(layer: int, metrics: dict[str, float], experts: ExpertMetrics | None = None) -> LayerReport:
    """From routing_metrics and expert_metrics of one layer."""
    fields: dict[str, Any] = {name.partition(".")[2]: value for name, value in metrics.items()}
    return LayerReport(layer=layer, **fields, **(asdict(experts) if experts else {}))
