from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ernie_export.bench.bench import Bench

FEW = ("--prefill", "16", "--decode", "8", "--tokens", "2", "--repeat", "1", "--threads", "1")


def test_a_table_and_a_page(run, bundle: Callable[[str], Path], tmp_path: Path) -> None:
    ran = run("bench", bundle("int4"), *FEW, "--html", tmp_path / "speed.html")
    assert (ran.code, ran.err) == (0, "")
    assert all(words in ran.out for words in ("opens warm", "opens cold", "tokens/s", "of the bandwidth"))
    assert (tmp_path / "speed.html").read_text().count("<polyline") >= 2


def test_json(run, bundle: Callable[[str], Path]) -> None:
    ran = run("bench", bundle("int4"), *FEW, "--json")
    assert ran.code == 0
    assert Bench.model_validate(json.loads(ran.out)).prefill[0].tokens == 16


def test_mistakes(run, bundle: Callable[[str], Path], tmp_path: Path) -> None:
    assert "holds no engine.json" in run("bench", tmp_path).err
    beyond = run("bench", bundle("int4"), "--prefill", "4096")
    assert beyond.code == 2 and "room for 2048" in beyond.err
    assert run("bench", bundle("int4"), "--html", tmp_path).code == 2
