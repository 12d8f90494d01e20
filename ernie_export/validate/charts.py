"""The geometry of charts: where things stand, in percent of a plot's width and height, from the lower left.

A page stretches a plot to any width; lines are drawn stretched, while dots and words keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Tick:
    at: float
    label: str
    minor: bool = False
    """Left out where there is little room."""


@dataclass(frozen=True)
class Scale:
    """From values to percent; what lies outside is put at the edge, and what is no number at the far one."""

    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        if math.isnan(value):
            return 100.0
        low, high, here = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return round(100 * (here - low) / (high - low), 2)

    def ticks(self, label: Callable[[float], str]) -> list[Tick]:
        values = self._decades() if self.logarithmic else self._steps()
        many = len(values) > 5
        return [
            Tick(self.at(value), label(value), many and number % 2 == 1)
            for number, value in enumerate(values)
        ]

    def _decades(self) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**exponent for exponent in range(first, last + 1)]

    def _steps(self) -> list[float]:
        step = step_of(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [
            (first + number) * step for number in range(int((self.high - first * step) / step + 1e-9) + 1)
        ]


def step_of(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that `span` has three to six of it."""
    power: float = 10.0 ** math.floor(math.log10(span / 3))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= span / 3 * (1 + 1e-9))


def decades_around(values: Sequence[float], floor: float) -> Scale:
    """A logarithmic scale of whole decades that holds the values which are numbers, none below `floor`."""
    known = [max(value, floor) for value in values if math.isfinite(value)] or [1.0]
    low = 10.0 ** math.floor(math.log10(min(known)))
    high = 10.0 ** math.ceil(math.log10(max(known)) + 1e-9)
    return Scale(low, max(high, 10 * low), logarithmic=True)


def from_zero(values: Sequence[float]) -> Scale:
    """A linear scale from 0 with a little room above the largest of the values which are numbers."""
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    if largest <= 0:
        return Scale(0, 1)
    step = step_of(largest)
    return Scale(0, math.ceil(largest / step + 0.2) * step)


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    title: str
    label: str = ""
    own: bool = False


@dataclass(frozen=True)
class Line:
    name: str
    dots: list[Dot]

    @property
    def path(self) -> str:
        """For an SVG polyline, whose y grows downwards."""
        return " ".join(f"{dot.x:g},{round(100 - dot.y, 2):g}" for dot in self.dots)


@dataclass(frozen=True)
class Plot:
    says: str
    """The whole of it in a sentence, for who cannot see it."""
    x_name: str
    y_name: str
    x: list[Tick]
    y: list[Tick]
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)


@dataclass(frozen=True)
class Column:
    left: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Columns:
    says: str
    x_name: str
    x: list[Tick]
    columns: list[Column]
    marks: list[Tick]


def columns(
    edges: Sequence[float], counts: Sequence[int], label: Callable[[float], str]
) -> tuple[list[Column], Scale]:
    """A histogram on a logarithmic axis; what is below the first edge, or from the last on, stands beside it."""
    used = [number for number, count in enumerate(counts) if count]
    first, last = max(used[0] - 1, 1), min(used[-1] + 1, len(counts) - 2)
    ratio = edges[1] / edges[0]
    # One column's width of room on either side, for the two open ends.
    scale = Scale(edges[first - 1] / ratio, edges[last] * ratio, logarithmic=True)
    bounds = [0.0, *(scale.at(edge) for edge in edges[first - 1 : last + 1]), 100.0]
    inside = [sum(counts[:first]), *counts[first : last + 1], sum(counts[last + 1 :])]
    shown = [label(edge) for edge in edges[first - 1 : last + 1]]
    titles = [f"below {shown[0]}", *(f"{a} to {b}" for a, b in pairwise(shown)), f"from {shown[-1]} on"]
    tallest = max(inside)
    return [
        Column(left, round(right - left, 2), round(100 * count / tallest, 2), f"{title}: {count:,}")
        for (left, right), count, title in zip(pairwise(bounds), inside, titles, strict=True)
    ], scale


@dataclass(frozen=True)
class Cell:
    level: int | None
    """Which shade; None where there is nothing to show."""
    title: str
    flagged: bool = False


@dataclass(frozen=True)
class Heat:
    says: str
    rows_are: str
    columns_are: str
    shades: str
    """"error" grows from nothing, "load" both ways from the middle."""
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    legend: list[str]
    """A label for each level."""


def level(value: float, thresholds: Sequence[float]) -> int:
    """How many thresholds are reached; a NaN reaches all."""
    return sum(not value < threshold for threshold in thresholds)
