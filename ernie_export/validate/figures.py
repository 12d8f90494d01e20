"""The figures of the page: what of a report goes into which chart, and what each of them says."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ernie_export.readable import size
from ernie_export.validate.charts import (
    Cell,
    Columns,
    Dot,
    Heat,
    Line,
    Plot,
    Scale,
    Tick,
    columns,
    decades_around,
    from_zero,
    level,
)
from ernie_export.validate.report import DriftReport, LayerReport, OperatorReport, Report

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SMALLEST = 1e-9
"""Below it an error is drawn as if it were this: fp32 says no more."""
SUM = "the layer's sum"
LEAST_KL = 1e-7
"""Nats; the same for the mean KL of a build."""
ERROR_SHADES = (1e-6, 1e-5, 1e-3, 1e-2, 0.05, 0.2)
CHANGE_SHADES = (1e-9, 0.005, 0.01, 0.02, 0.05, 0.15)
LOAD_SHADES = (0.25, 0.5, 0.8, 1.25, 2, 4)
#: Percent of the height; labels nearer than this would lie on each other.
LABEL_HEIGHT = 7.0


def power(value: float) -> str:
    """A power of ten as people write it."""
    exponent = round(math.log10(value))
    return f"{value:g}" if -2 <= exponent <= 1 else f"10{str(exponent).translate(SUPERSCRIPT)}"


def nats(value: float) -> str:
    return f"{value:.2g}"


def drift(layers: Sequence[DriftReport], fault: str | None = None) -> Plot | None:
    """The relative error of the hidden state behind each layer: what it has come to, and what the layer adds.

    `fault` is the place that the report names.
    """
    if not layers:
        return None
    series = {
        "accumulated": [(layer.layer, layer.error, layer.cosine) for layer in layers],
        "added by the layer": [(layer.layer, layer.added_error, layer.added_cosine) for layer in layers],
    }
    values = [error for points in series.values() for _, error, _ in points]
    logarithmic = _spread(values) > 20
    y = decades_around(values, SMALLEST) if logarithmic else from_zero(values)
    x = Scale(layers[0].layer - 0.3, max(layers[-1].layer, layers[0].layer + 1) + 0.3)
    lines = [
        Line(
            name,
            [
                Dot(
                    x.at(layer), y.at(error), f"Layer {layer}, {name}: error {error:.3g}, cosine {cosine:.6f}"
                )
                for layer, error, cosine in points
            ],
        )
        for name, points in series.items()
    ]
    every = max(1, math.ceil(len(layers) / 14))
    ticks = [
        Tick(x.at(layer.layer), str(layer.layer), len(layers) > 9 and number % 2 == 1)
        for number, layer in enumerate(layers[::every])
    ]
    return Plot(
        says=_drift_says(layers, fault),
        x_name="layer",
        y_name="relative error of the hidden state",
        x=ticks,
        y=y.ticks(power if logarithmic and y.low < 1e-4 else lambda value: f"{100 * value:.3g} %"),
        lines=lines,
    )


def _drift_says(layers: Sequence[DriftReport], fault: str | None) -> str:
    place = re.match(r"layers\.(\d+)\.", fault or "")
    faulty = [layer for layer in layers if place and layer.layer == int(place[1])]
    if faulty:
        return f"The fault is in layer {faulty[0].layer}, which adds an error of {faulty[0].added_error:.2%}"
    worst = max(layers, key=lambda layer: _bad(layer.error))
    return f"The error is largest behind layer {worst.layer}: {worst.error:.2%} of the hidden state"


def _spread(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value) and value > 0]
    return max(known) / min(known) if known else 1.0


def _bad(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _limits(report: Report) -> dict[str, float]:
    """The largest error that a gate allows, by kind of operator."""
    return {
        gate.name.removeprefix("operators.").removesuffix("_error"): gate.max
        for gate in report.gates
        if gate.name.startswith("operators.") and gate.max is not None
    }


def _place(operator: OperatorReport) -> tuple[int | None, str]:
    """`layers.3.attention.q.output` is `attention.q` of layer 3."""
    name = operator.name.removesuffix(".output").removesuffix(".scores") or operator.name
    first, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if first == "layers" and number.isdecimal():
        return int(number), inner or SUM
    return None, name


def operators(report: Report) -> Heat | None:
    """Each operator alone, by layer: how far it is off on the reference's inputs."""
    found: dict[str, dict[int, OperatorReport]] = {}
    for operator in report.operators:
        layer, name = _place(operator)
        if layer is not None:
            found.setdefault(name, {})[layer] = operator
    if not found:
        return None
    layers = sorted({layer for by_layer in found.values() for layer in by_layer})
    limits = _limits(report)
    rows = [
        (name, [_operator_cell(name, layer, by_layer.get(layer), limits) for layer in layers])
        for name, by_layer in sorted(found.items(), key=lambda row: _row_order(row[0]))
    ]
    off = sum(cell.flagged for _, cells in rows for cell in cells)
    worst = max(report.operators, key=lambda operator: _bad(operator.relative_error))
    return Heat(
        says=f"{off} operators are further off than their gates allow"
        if off
        else f"The furthest off is {worst.name.removesuffix('.output')}: {worst.relative_error:.2g}",
        rows_are="operator",
        columns_are="layer",
        shades="error",
        columns=[str(layer) for layer in layers],
        rows=rows,
        legend=_legend(ERROR_SHADES, power),
    )


def _row_order(name: str) -> int:
    """Rows stand as they were found, but attention's before what reads it, and the sum of a layer last."""
    return {"input_norm": 0, SUM: 3}.get(name, 1 if name.startswith("attention.") else 2)


def _operator_cell(name: str, layer: int, operator: OperatorReport | None, limits: dict[str, float]) -> Cell:
    if operator is None:
        return Cell(None, "")
    error, limit = operator.relative_error, limits.get(operator.kind)
    expert = "" if operator.expert is None else f", expert {operator.expert} the worst"
    allowed = "" if limit is None else f"; allowed {limit:.2g}"
    title = f"Layer {layer}, {name}: relative error {error:.2g}{expert}{allowed}"
    return Cell(level(error, ERROR_SHADES), title, limit is not None and not error <= limit)


def operators_apart(report: Report) -> list[tuple[str, str]]:
    """The operators that belong to no layer, with their errors."""
    return [
        (name, f"{operator.relative_error:.2g}")
        for operator in report.operators
        for layer, name in [_place(operator)]
        if layer is None
    ]


def _legend(thresholds: Sequence[float], label: object) -> list[str]:
    assert callable(label)
    between = [f"to {label(value)}" for value in thresholds[1:]]
    return [f"below {label(thresholds[0])}", *between, "more"]


def kl(report: Report) -> Columns | None:
    """How the tokens are spread over the KL divergence of their logits."""
    histogram = report.kl_histogram
    if histogram is None or not sum(histogram.counts) or len(histogram.edges) < 2:
        return None
    bars, scale = columns(histogram.edges, histogram.counts, nats)
    names = {"logits.kl_mean": "mean", "logits.kl_p99": "99 %", "logits.kl_p999": "99.9 %"}
    marks = [
        Tick(scale.at(report.metrics[name]), f"{label} {nats(report.metrics[name])}", number % 2 == 1)
        for number, (name, label) in enumerate(names.items())
        if name in report.metrics and report.metrics[name] >= scale.low
    ]
    return Columns(
        says=f"Half of all tokens are below {nats(_median(histogram.edges, histogram.counts))} nats",
        x_name="KL divergence, nats",
        x=scale.ticks(power),
        columns=bars,
        marks=marks,
    )


def _median(edges: Sequence[float], counts: Sequence[int]) -> float:
    """The upper edge of the bin in which the middle token lies."""
    total, seen = sum(counts), 0
    for number, count in enumerate(counts):
        seen += count
        if 2 * seen >= total:
            return edges[number] if number < len(edges) else math.inf
    return math.inf


def agreement(layers: Sequence[LayerReport]) -> Heat | None:
    """How often the two sides differ in choosing an expert, by layer and expert."""
    rows = [
        (
            str(layer.layer),
            [
                Cell(None, f"Layer {layer.layer}, expert {expert}: never chosen")
                if same is None
                else Cell(
                    level(1 - same, CHANGE_SHADES),
                    f"Layer {layer.layer}, expert {expert}: the same for {same:.2%} of its tokens",
                )
                for expert, same in enumerate(layer.expert_agreement)
            ],
        )
        for layer in layers
    ]
    if not any(cells for _, cells in rows):
        return None
    worst = min(layers, key=lambda layer: layer.agreement)
    return Heat(
        says=f"The choice changes most in layer {worst.layer}: "
        f"{1 - worst.agreement:.1%} of its tokens get another set of experts",
        rows_are="layer",
        columns_are="expert",
        shades="error",
        columns=_expert_names(layers),
        rows=rows,
        legend=["all the same", "to 0.5 % changed", "to 1 %", "to 2 %", "to 5 %", "to 15 %", "more"],
    )


def load(layers: Sequence[LayerReport]) -> Heat | None:
    """How many tokens the export sends to each expert, against an even share."""
    rows = []
    most: tuple[float, str] = (0.0, "")
    for layer in layers:
        even = sum(layer.expert_load) / max(len(layer.expert_load), 1) or 1.0
        cells = []
        for expert, share in enumerate(layer.expert_load):
            before = layer.expert_load_reference[expert] if layer.expert_load_reference else share
            title = (
                f"Layer {layer.layer}, expert {expert}: {share:.1%} of the tokens, checkpoint {before:.1%}"
            )
            cells.append(Cell(level(share / even, LOAD_SHADES), title))
            most = max(most, (share / even, f"expert {expert} of layer {layer.layer}"))
        rows.append((str(layer.layer), cells))
    if not any(cells for _, cells in rows):
        return None
    idle = sum(share == 0 for layer in layers for share in layer.expert_load)
    return Heat(
        says=f"The busiest is {most[1]}: {most[0]:.1f} times an even share; "
        + (f"{idle} are never chosen" if idle else "none is idle"),
        rows_are="layer",
        columns_are="expert",
        shades="load",
        columns=_expert_names(layers),
        rows=rows,
        legend=["below ¼ of an even share", "to ½", "to 0.8", "even", "to 2 times", "to 4 times", "more"],
    )


def _expert_names(layers: Sequence[LayerReport]) -> list[str]:
    """Numbers over the columns; of many, every eighth."""
    count = max(len(layer.expert_agreement) for layer in layers)
    every = 1 if count <= 16 else 8
    return [str(expert) if expert % every == 0 else "" for expert in range(count)]


def quality_against_size(report: Report, others: Sequence[tuple[str, Report]]) -> Plot | None:
    """The mean KL of each build against the size of its weights; None where there is nothing to compare with."""
    builds = [
        (name, sum(build.sizes.parts.values()), build.metrics["logits.kl_mean"], build is report)
        for name, build in [("this build", report), *others]
        if "logits.kl_mean" in build.metrics
    ]
    if len(builds) < 2:
        return None
    x = from_zero([bytes for _, bytes, _, _ in builds])
    y = decades_around([kl for _, _, kl, _ in builds], LEAST_KL)
    dots = [
        Dot(x.at(bytes), y.at(kl), f"{name}: {size(bytes)}, KL {kl:.3g} nats", name, own)
        for name, bytes, kl, own in builds
    ]
    best = min(builds, key=lambda build: _bad(build[2]))
    return Plot(
        says=f"Nearest to the checkpoint is {best[0]}, with {size(best[1])} of weights",
        x_name="weights",
        y_name="KL divergence, mean, nats (lower is nearer)",
        x=x.ticks(lambda bytes: size(bytes) if bytes else "0"),
        y=y.ticks(lambda kl: f"≤ {power(kl)}" if kl <= LEAST_KL * 1.01 else power(kl)),
        dots=_apart(dots),
    )


def _apart(dots: Sequence[Dot]) -> list[Dot]:
    """Labels that would lie on each other are joined to the one that stands first."""
    placed: list[Dot] = []
    for dot in dots:
        near = [
            at
            for at, other in enumerate(placed)
            if other.label and abs(other.y - dot.y) < LABEL_HEIGHT and abs(other.x - dot.x) < 30
        ]
        if near and dot.label:
            first = placed[near[0]]
            joined = f"{first.label}, {dot.label}"
            placed[near[0]] = Dot(first.x, first.y, first.title, joined, first.own)
            dot = Dot(dot.x, dot.y, dot.title, "", dot.own)
        placed.append(dot)
    return placed
