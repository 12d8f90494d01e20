"""docs/faults.md is what was measured, of every fault there is."""

from __future__ import annotations

import json
from pathlib import Path

from tests.validate import fault_table
from tests.validate.faults import CASES, FAULTS

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"
ROWS = json.loads(MEASURED.read_text("utf-8"))["rows"]


def test_the_page_says_what_was_measured() -> None:
    assert fault_table.DOCUMENT.read_text("utf-8") == fault_table.render(ROWS)


def test_every_fault_was_measured_in_every_format() -> None:
    assert [(row["fault"], row["recipe"], row["gate"]) for row in ROWS] == [
        (fault.name, recipe, fault.gate) for fault, recipe in CASES
    ]
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25


def test_each_was_stopped_and_nine_of_ten_places_were_right() -> None:
    assert all(row["gates"] for row in ROWS)
    by_case = {(fault.name, recipe): fault for fault, recipe in CASES}
    right = [by_case[row["fault"], row["recipe"]].place in row["place"] for row in ROWS]
    assert [row["right"] for row in ROWS] == right
    assert sum(right) >= 0.9 * len(ROWS)
