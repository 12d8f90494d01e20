from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export import bits
from ernie_export.bits import Choice
from ernie_export.plan.machine import SWITCH
from ernie_export.recipe import Recipe


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "WINDOWS", 2)
    monkeypatch.setattr(bits, "TOKENS", 16)
    monkeypatch.setenv(SWITCH, "0")  # the budgets below are for what ONNX Runtime's own operators hold


def test_a_recipe_is_written_and_told_of(run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    ran = run("bits", "--budget", "109MB", "--output", path)
    assert (ran.code, ran.err) == (0, "")
    facts, rows = ran.out.split("\n\n")
    assert facts.splitlines()[0].split() == ["recipe", str(path)]
    assert "of 109 MB on cpu" in facts and "32 tokens of calibration.txt" in facts
    header, *groups = rows.splitlines()
    assert header.split("  ")[0] == "layer" and header.endswith("KL if int4") and len(groups) == 18
    lost = [float(row.split()[-1]) for row in groups]
    assert lost == sorted(lost, reverse=True)
    recipe = Recipe.read(path)
    layer, part, form, *_ = groups[1].split()
    assert recipe.parts.of(part, int(layer)).format == form
    choice = Choice.model_validate_json(run("bits", "--budget", "109MB", "--output", path, "--json").out)
    assert choice.recipe == recipe and choice.needed <= choice.budget == 109 * 10**6


def test_the_budget_of_the_recipe(run, tmp_path: Path) -> None:
    mine = Recipe.find("int4").model_copy(update={"name": "mine", "bits": "auto", "budget": "108 MB"})
    (tmp_path / "mine.toml").write_text(mine.to_toml())
    ran = run("bits", "--recipe", tmp_path / "mine.toml", "--output", tmp_path / "made.toml")
    assert ran.code == 0 and "of 108 MB on cpu" in ran.out
    assert Recipe.read(tmp_path / "made.toml").name == "mine-auto"


def test_a_targets_memory(run, tmp_path: Path) -> None:
    ran = run("bits", "--budget", "l4", "--output", tmp_path / "mine.toml")
    assert ran.code == 0 and "of 24.2 GB on l4" in ran.out
    assert {form.format for form in Recipe.read(tmp_path / "mine.toml").parts.named().values()} == {"int8"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "mine.toml"], "No budget is given. Add --budget 8GB"),
        (["--budget", "8GB"], "Missing option '--output'"),
        (
            ["--budget", "8GB", "--output", "mine"],
            "mine is no place for a recipe. Name a file that ends in .toml.",
        ),
        (["--budget", "8GB", "--output", "no/mine.toml"], "There is no folder "),
        (["--budget", "8 apples", "--output", "mine.toml"], "'8 apples' is no memory budget. Give a size"),
        (["--budget", "rtx", "--output", "mine.toml"], "'rtx' is no memory budget. Give a size"),
        (["--budget", "1MB", "--output", "mine.toml"], "The smallest formats need "),
        (
            ["--budget", "1GB", "--output", "mine.toml", "--recipe", "fp32"],
            "the recipe fp32 leaves nothing to choose",
        ),
        (["--budget", "1GB", "--output", "mine.toml", "--text", "no.txt"], "The text no.txt cannot be read"),
    ],
)
def test_mistakes(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("bits", *arguments)
    assert ran.code == 2 and ran.out == ""
    assert ran.err.startswith(f"error: {message}"), ran.err
    assert list(tmp_path.iterdir()) == []
