"""What benchmarks/deploy.py measured is what is promised."""

from __future__ import annotations

import json
from pathlib import Path

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "deploy.json"


def test_twenty_devices_at_once_and_a_small_update() -> None:
    found = json.loads(MEASURED.read_text())
    first, update = found["rows"]
    for row in (first, update):
        assert row["devices"] >= 20 and row["failed"] == []
    assert found["layers"] == 20
    assert sum(file.startswith("weights/") for file in found["files_that_differ"]) == 1
    assert first["share"] >= 1  # no layer is another one's file, which would travel once
    assert found["their_bytes"] < update["sent_bytes_to_a_device"] and update["share"] <= 0.10
    assert all(gates["passed"] == gates["of"] > 20 for gates in found["gates"].values())
