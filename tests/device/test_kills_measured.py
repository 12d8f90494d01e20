"""What benchmarks/install_kills.py measured is what is promised, and what docs/power-loss.md shows."""

from __future__ import annotations

import json

from benchmarks.doc_table import with_table
from benchmarks.install_kills import DOCUMENT, OFFERED, RESULTS, STATES, table


def test_no_kill_broke_a_device() -> None:
    found = json.loads(RESULTS.read_text())
    assert list(found["offered"]) == list(OFFERED)
    assert sum(len(of["kills"]) for of in found["offered"].values()) >= 200
    for of in found["offered"].values():
        assert of["broken"] == []
        then = {kill["then"] for kill in of["kills"]}
        assert then <= set(STATES[:3]) and {STATES[0], STATES[2]} <= then
    document = DOCUMENT.read_text("utf-8")
    assert with_table(document, "install_kills.py", table(found)) == document
