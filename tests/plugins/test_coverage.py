"""The tests run every line of the kernels."""

from __future__ import annotations

import json

import pytest

from benchmarks.kernel_coverage import KERNELS, RESULT, measured


def test_no_line_was_missed() -> None:
    stored = json.loads(RESULT.read_text())
    assert {path.name for path in KERNELS.glob("*.cu")} <= stored.keys()
    assert {name: row["missed"] for name, row in stored.items() if row["missed"]} == {}


@pytest.mark.slow
def test_every_line_measured_anew() -> None:
    assert {name: row["missed"] for name, row in measured().items() if row["missed"]} == {}
