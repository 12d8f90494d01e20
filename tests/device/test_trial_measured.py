"""What benchmarks/trial.py measured at the real vocabulary is what is promised."""

from __future__ import annotations

import json
from pathlib import Path

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "trial.json"


def test_the_self_check_holds_and_the_limits_refuse() -> None:
    found = json.loads(MEASURED.read_text())
    assert found["vocabulary"] == 103_424
    taken, slow, tight = found["installations"]
    assert taken["exit_code"] == 0 and taken["said"] == ""
    assert taken["tried"]["token_ms"] > slow["policy"]["max_token_ms"]
    assert slow["exit_code"] == 1 and "ms a token, and" in slow["said"]
    assert tight["exit_code"] == 1 and "the policy wants 99% to stay free" in tight["said"]
