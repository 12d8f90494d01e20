"""docs/faults.md: what stopped each planted fault, and where validation said that it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.validate import faults_in_graph, faults_in_running, faults_in_weights

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
KINDS = {
    "Faults of the graph": faults_in_graph.FAULTS,
    "Faults of the weights": faults_in_weights.FAULTS,
    "Faults of what runs the graph": faults_in_running.FAULTS,
}
PREFACE = """\
# Planted faults

{faults} faults that exporters really have, each planted alone into a sound build of ernie-nano, {cases} builds
in all, and what validation says to each: {stopped} of {cases} are stopped, {right} with the right place named. A
fault that is stopped by `error` is found before anything is measured.

`tests/validate` plants them anew; `python -m benchmarks.faults` measures them all and writes this page from
`benchmarks/results/faults.json`.
"""

Row = Mapping[str, Any]
"""fault, recipe, gate (that must stop it), gates (that failed), place (named), right."""


def render(rows: Iterable[Row]) -> str:
    by_case = {(row["fault"], row["recipe"]): row for row in rows}
    lines = [
        PREFACE.format(
            faults=len({fault for fault, _ in by_case}),
            cases=len(by_case),
            stopped=sum(bool(row["gates"]) for row in by_case.values()),
            right=sum(row["right"] for row in by_case.values()),
        )
    ]
    for kind, faults in KINDS.items():
        lines += [
            f"## {kind}",
            "",
            "| fault | recipe | stopped by | place named | right |",
            "|---|---|---|---|---|",
        ]
        for fault in faults:
            lines += [_line(by_case[fault.name, recipe]) for recipe in fault.recipes]
        lines.append("")
    return "\n".join(lines)


def _line(row: Row) -> str:
    gates = list(row["gates"])
    first = row["gate"] if row["gate"] in gates else (gates or ["nothing"])[0]
    more = f" and {len(gates) - 1} more" if len(gates) > 1 else ""
    place = row["place"].replace("|", "\\|")
    return f"| {row['fault']} | {row['recipe']} | {first}{more} | {place} | {'yes' if row['right'] else '**no**'} |"
