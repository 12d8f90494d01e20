"""A validation report for a person, and the error that a failed one ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_export.cli.terminal import coloured, facts, table, terminal
from ernie_export.errors import WorkError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ernie_export.validate.report import BaselineReport, Report


def report_table(report: Report) -> RenderableType:
    """What was measured, what it must be, and whether it is."""
    rows = [
        (row.label, row.value, row.bound, "" if row.passed is None else verdict(row.passed))
        for row in report.summary_rows()
    ]
    return table(("measured", "", "must be", ""), rows, right=(1,))


def show_report(report: Report) -> None:
    """The table, and what else there is to know."""
    terminal.show(report_table(report))
    if report.notes:
        terminal.show("")
        terminal.show(facts(("note", note) for note in report.notes))


def baseline_table(baseline: BaselineReport) -> RenderableType:
    """What it was, is, and may be."""
    from ernie_export.validate.report import HEADLINES, shown

    titles = f"against {baseline.recipe} of {baseline.time}", "was", "is", "may be", "allowed", ""
    rows = [
        (
            HEADLINES.get(row.name, row.name),
            *(shown(row.name, value) for value in (row.before, row.value, row.bound)),
            row.allowed,
            verdict(row.passed),
        )
        for row in baseline.rows
    ]
    return table(titles, rows, right=(1, 2, 3))


def verdict(passed: bool) -> RenderableType:
    return coloured("passed" if passed else "failed", passed)


def failed_gates(report: Report) -> list[str]:
    return [gate.name for gate in report.gates if not gate.passed]


def refusal(report: Report, remedy: str) -> WorkError:
    """What a failed report ends with; `remedy` is for its gates."""
    failed, fallen = failed_gates(report), fallen_metrics(report)
    causes = []
    if failed:
        causes.append(f"{len(failed)} of {len(report.gates)} gates failed ({', '.join(failed)})")
    if report.fault:
        causes.append(f"the fault begins at {report.fault}")
    if fallen:
        causes.append(f"{', '.join(fallen)} fell further below the baseline than is allowed")
    if not failed:
        remedy = f"Find what changed since, or allow it with --allow {fallen[0]}=…"
    return WorkError("; ".join(causes), remedy)


def fallen_metrics(report: Report) -> list[str]:
    return [row.name for row in report.baseline.rows if not row.passed] if report.baseline else []
