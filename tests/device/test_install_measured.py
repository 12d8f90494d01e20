"""What benchmarks/install_speed.py measured is what is promised."""

from __future__ import annotations

import json
from pathlib import Path

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "install_speed.json"


def test_an_installation_beside_cp_and_sha256sum() -> None:
    found = json.loads(MEASURED.read_text())
    assert found["megabytes"] >= 1000
    assert set(found["times"]) == {"in memory", "on the disk"}
    for ways in found["times"].values():
        assert set(ways) == {"install from a registry", "install from a folder"}
        for times in ways.values():
            assert times["cp, sha256sum"] <= found["at_most"] == 1.5
            assert times["cp, sync, sha256sum"] <= 1.5
