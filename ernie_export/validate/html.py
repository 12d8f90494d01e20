"""A report as one page for a person: no script, nothing fetched, every word of a checkpoint escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from ernie_export.readable import size
from ernie_export.validate import figures
from ernie_export.validate.report import HEADLINES, Claim, Continuation, Report, shown

CONTROLS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {
    code: "\ufffd" for code in (*range(0x7F, 0xA0), *range(0xD800, 0xE000))
}
"""Control characters are shown as pictures of themselves, and what UTF-8 cannot hold as what is no character."""


class GateRow(NamedTuple):
    label: str
    value: str
    bound: str
    passed: bool
    used: float | None
    """Percent of what the gate allows, at most 100; None where that has no meaning."""


class Bar(NamedTuple):
    label: str
    value: str
    percent: float


@dataclass(frozen=True)
class Spoken:
    """A continuation, cut where the two part."""

    prompt: str
    same: str
    reference: str
    export: str
    agreement: str


def render(report: Report, others: Sequence[tuple[str, Report]] = (), built: Sequence[Claim] = ()) -> bytes:
    """The page, in UTF-8.

    `others` are named reports on the same checkpoint and inputs, to be shown beside this one; `built` are
    claims of the bundle's manifest, beside those of the report.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda text: str(text).translate(CONTROLS)
    page = environment.get_template("report.html").render(
        report=report,
        reasons=_reasons(report),
        figures=_key_figures(report),
        gates=_gate_rows(report),
        other_metrics=_other_metrics(report),
        baseline=_baseline_rows(report),
        drift=figures.drift(report.drift, report.fault),
        operators=figures.operators(report),
        apart=figures.operators_apart(report),
        kl=figures.kl(report),
        agreement=figures.agreement(report.layers),
        load=figures.load(report.layers),
        scatter=figures.quality_against_size(report, others),
        others=[_build_row(name, other) for name, other in [("this build", report), *others]]
        if others
        else [],
        spoken=[_spoken(continuation) for continuation in report.continuations],
        parts=_bars(report.sizes.parts, size),
        files=sorted((name, size(count)) for name, count in report.sizes.files.items()),
        weights=size(sum(report.sizes.parts.values())),
        times=_bars(report.timings, lambda seconds: f"{seconds:.3g} s"),
        seconds=f"{sum(report.timings.values()):.3g} s",
        peak=size(report.metrics["memory.peak_bytes"]) if "memory.peak_bytes" in report.metrics else None,
        claims=[*(claim for claim in built if claim not in report.claims), *report.claims],
        machine=[(name, size(int(v)) if name == "memory_bytes" else v) for name, v in report.machine.items()],
    )
    return page.translate(CONTROLS).encode()


def _reasons(report: Report) -> list[tuple[str, str]]:
    """Why it failed, or what it passed: (what, how), the gates first."""
    rows = [
        (row.label, f"{row.value}, but must be {row.bound}")
        for row in report.summary_rows()
        if row.passed is False
    ]
    for fallen in report.baseline.rows if report.baseline else ():
        if not fallen.passed:
            name = fallen.name
            worse = f"was {shown(name, fallen.before)} and is {shown(name, fallen.value)}"
            rows.append((HEADLINES.get(name, name), f"{worse}: more than {fallen.allowed} worse"))
    return rows


def _key_figures(report: Report) -> list[tuple[str, str, str]]:
    """(what, value, unit) of the few numbers that say most."""
    wanted = [
        ("logits.same_top1", "Same likeliest token", ""),
        ("logits.kl_mean", "KL divergence, mean", "nats"),
        ("routing.agreement", "Same experts", ""),
        ("perplexity.ratio", "Perplexity, against the checkpoint's", "times"),
    ]
    found = [
        (label, shown(name, report.metrics[name]), unit)
        for name, label, unit in wanted
        if name in report.metrics
    ]
    value, _, unit = size(sum(report.sizes.parts.values())).partition(" ")
    return [*found, ("Weights", value, unit)]


def _gate_rows(report: Report) -> list[GateRow]:
    """Those that failed first."""
    gates = {HEADLINES.get(gate.name, gate.name): gate for gate in report.gates}
    rows = []
    for row in report.summary_rows():
        if row.passed is not None:
            gate = gates[row.label]
            used = _used(gate.name, gate.value, gate.min, gate.max)
            rows.append(GateRow(row.label, row.value, row.bound, row.passed, used))
    return sorted(rows, key=lambda row: row.passed)


def _used(name: str, value: float | None, low: float | None, high: float | None) -> float | None:
    """How much of the way from the ideal value to the bound has been gone, in percent."""
    ideal = 1.0 if name == "perplexity.ratio" or high is None else 0.0
    if value is None or math.isnan(value):
        return None
    bound = high if value >= ideal else low
    if bound is None or bound == ideal:
        return 0.0 if value == ideal else None
    part = (value - ideal) / (bound - ideal)
    return min(100 * part, 100.0) if part >= 0 else None


def _other_metrics(report: Report) -> list[tuple[str, str]]:
    gated = {gate.name for gate in report.gates}
    return [
        (HEADLINES.get(name, name), size(value) if name == "memory.peak_bytes" else shown(name, value))
        for name, value in sorted(report.metrics.items())
        if name not in gated
    ]


def _baseline_rows(report: Report) -> list[tuple[str, str, str, str, str, bool]]:
    return [
        (
            HEADLINES.get(row.name, row.name),
            shown(row.name, row.before),
            shown(row.name, row.value),
            shown(row.name, row.bound),
            row.allowed,
            row.passed,
        )
        for row in (report.baseline.rows if report.baseline else ())
    ]


def _build_row(name: str, report: Report) -> tuple[str, str, str, str, str, str, str]:
    def value(metric: str) -> str:
        return shown(metric, report.metrics.get(metric))

    weights = size(sum(report.sizes.parts.values()))
    metrics = ("logits.kl_mean", "logits.same_top1", "perplexity.ratio")
    kl, top1, ratio = (value(metric) for metric in metrics)
    return name, report.recipe, weights, kl, top1, ratio, report.verdict


def _spoken(continuation: Continuation) -> Spoken:
    reference, export = continuation.reference, continuation.export
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reference, export, strict=False)))
    return Spoken(
        prompt=continuation.prompt,
        same=reference[:same],
        reference=reference[same:],
        export=export[same:],
        agreement=f"{continuation.agreement:.0%}",
    )


def _bars(values: dict[str, int] | dict[str, float], label: object) -> list[Bar]:
    """The largest first; percent of the largest."""
    assert callable(label)
    largest = max(values.values(), default=0) or 1
    return [
        Bar(name.replace("_", " "), label(value), round(100 * value / largest, 1))
        for name, value in sorted(values.items(), key=lambda item: -item[1])
    ]
