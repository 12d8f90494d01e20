"""A validation report for a person, and the error that a failed one ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_export.cli.terminal import coloured, table
from ernie_export.errors import WorkError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ernie_export.validate.report import Report


def report_table(report: Report) -> RenderableType:
    """What was measured, what it must be, and whether it is."""
    rows = [
        (row.label, row.value, row.bound, "" if row.passed is None else verdict(row.passed))
        for row in report.summary_rows()
    ]
    return table(("measured", "", "must be", ""), rows, right=(1,))


def verdict(passed: bool) -> RenderableType:
    return coloured("passed" if passed else "failed", passed)


def failed_gates(report: Report) -> list[str]:
    return [gate.name for gate in report.gates if not gate.passed]


def refusal(report: Report, remedy: str) -> WorkError:
    failed = failed_gates(report)
    return WorkError(f"{len(failed)} of {len(report.gates)} gates failed ({', '.join(failed)})", remedy)
