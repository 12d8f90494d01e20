from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.synthetic import NOTICE


def test_a_checkpoint_is_written_and_told_of(run, tmp_path: Path) -> None:
    ran = run("synthesize", "--like", "nano", "--layers", "2", "--seed", "5", "--output", tmp_path / "m")
    assert (ran.code, ran.err) == (0, "")
    told = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert told["checkpoint"] == str(tmp_path / "m")
    assert told["layers"] == "2" and told["size"].endswith("MB in 1 file")
    assert told["note"] == f"synthetic, like nano, seed 5; {NOTICE}"
    assert Checkpoint.open(tmp_path / "m").array("model.norm.weight").any()


def test_inspect_says_that_it_is_synthetic(run, tmp_path: Path) -> None:
    run("synthesize", "--like", "300b", "--layers", "5", "--sparse", "--output", tmp_path / "m")
    out = run("inspect", tmp_path / "m").out
    assert f"synthetic, like 300b, all zeros; {NOTICE}" in out
    assert "5, 2 of them MoE" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--like", "20b"], "'20b' is neither a shape of ERNIE-4.5 nor a folder with a config.json. Did you"),
        (
            ["--like", "300b", "--layers", "3"],
            "300b has its first experts in layer 3, so 3 layers would have",
        ),
        (
            ["--like", "nano", "--layers", "0"],
            "Invalid value for '--layers': Input should be greater than or equal to 1",
        ),
        (
            ["--like", "nano", "--seed", "-1"],
            "Invalid value for '--seed': Input should be greater than or equal to 0",
        ),
        ([], "Missing option '--like'."),
    ],
)
def test_mistakes(run, tmp_path: Path, arguments: list[str], message: str) -> None:
    ran = run("synthesize", *arguments, "--output", tmp_path / "m")
    assert ran.code == 2 and ran.out == ""
    assert ran.err.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_what_stands_there_is_kept(run, tmp_path: Path) -> None:
    ran = run("synthesize", "--like", "nano", "--output", tmp_path)
    assert ran.code == 2 and ran.err.startswith(f"error: {tmp_path} exists.")
