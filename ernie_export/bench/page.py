"""A measurement as one page with its plots: no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ernie_export.bench.bench import Bench
from ernie_export.readable import size
from ernie_export.validate.charts import Dot, Line, Plot, Scale, Tick, from_zero

MEASURED, ALLOWED = "measured", "at full bandwidth"


def render(measured: Bench) -> bytes:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        bench=measured, size=size, prefill=prefill_plot(measured), decode=decode_plot(measured)
    )
    return page.encode(errors="replace")


def prefill_plot(measured: Bench) -> Plot:
    points = [(row.tokens, row.tokens_per_second) for row in measured.prefill]
    says = "; ".join(f"{rate:,.0f} tokens/s for a prompt of {tokens:,}" for tokens, rate in points)
    return plot(f"Prefill: {says}", "tokens of the prompt", {MEASURED: points})


def decode_plot(measured: Bench) -> Plot:
    points = [(row.context, row.tokens_per_second) for row in measured.decode]
    says = "; ".join(f"{rate:,.1f} tokens/s at {context:,} tokens" for context, rate in points)
    lines = {MEASURED: points}
    if measured.bandwidth:
        lines[ALLOWED] = [(row.context, measured.bandwidth / row.bytes) for row in measured.decode]
    return plot(f"Decode: {says}", "tokens in the cache", lines)


def plot(says: str, x_name: str, lines: dict[str, list[tuple[int, float]]]) -> Plot:
    """Tokens a second over a number of tokens, on a logarithmic axis."""
    places = sorted({x for points in lines.values() for x, _ in points})
    low, high = (places[0], places[-1]) if len(places) > 1 else (places[0] / 2, places[0] * 2)
    across = Scale(low, high, logarithmic=True)
    up = from_zero([y for points in lines.values() for _, y in points])

    def drawn(name: str, points: Sequence[tuple[int, float]]) -> Line:
        return Line(name, [Dot(across.at(x), up.at(y), f"{x:,}: {y:,.1f} tokens/s") for x, y in points])

    return Plot(
        says,
        x_name,
        "tokens/s",
        [Tick(across.at(x), f"{x:,}") for x in places],
        up.ticks(lambda value: f"{value:,g}"),
        [drawn(name, points) for name, points in lines.items()],
    )
