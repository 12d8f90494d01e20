from __future__ import annotations

import re
from pathlib import Path

import pytest

from ernie_export import bits
from ernie_export.bits import Choice, budget_of, choose
from ernie_export.errors import UserError
from ernie_export.plan.machine import SWITCH
from ernie_export.plan.memory import memory
from ernie_export.plan.plan import available_on
from ernie_export.plan.setting import Setting
from ernie_export.progress import Silent
from ernie_export.readable import bytes_of
from ernie_export.recipe import LayerParts, PartFormat, Recipe
from ernie_export.target import Target

CPU = Target.find("cpu")
INT4 = Recipe.find("int4")


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "WINDOWS", 2)
    monkeypatch.setattr(bits, "TOKENS", 16)
    monkeypatch.setenv(SWITCH, "0")  # the budgets below are for what ONNX Runtime's own operators hold


def of(nano: Path, budget: str, recipe: Recipe = INT4, **use) -> Choice:
    return choose(nano, CPU, recipe, budget, Silent(), **use)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8 GB", 8 * 10**9), ("8gb", 8 * 10**9), ("1.5GiB", 3 << 29), ("300 MB", 3 * 10**8), ("77", 77)],
)
def test_a_budget_is_a_number(text: str, size: int) -> None:
    assert budget_of(text, CPU) == (size, CPU)


def test_or_all_that_a_target_has() -> None:
    orin = Target.find("jetson-orin-nx-16gb")
    assert budget_of("jetson-orin-nx-16gb", CPU) == (available_on(orin), orin)


@pytest.mark.parametrize("text", ["", "8 apples", "-3 GB", "GB", "1e9", "l44", "8 GB more"])
def test_or_none(text: str) -> None:
    with pytest.raises(
        UserError, match=r"is no memory budget\. Give a size, `8 GB`, or the name of a target"
    ):
        budget_of(text, CPU)


def test_more_memory_is_less_loss(nano: Path) -> None:
    found = [of(nano, budget) for budget in ("107 MB", "109 MB", "112 MB")]
    assert [choice.kl for choice in found] == sorted((choice.kl for choice in found), reverse=True)
    assert found[0].kl > found[2].kl
    for choice in found:
        parts = choice.recipe.parts
        use = Setting(parts=parts, context=2048, batch=1, prompt=512)
        assert choice.needed <= choice.budget and choice.memory == memory(nano_config(nano), CPU, use)
        losses = choice.sensitivity.losses()
        assert choice.kl == pytest.approx(
            sum(losses[group][parts.of(group.part, group.layer)] for group in losses)
        )


def nano_config(nano: Path):
    from ernie_export.checkpoint.config import ErnieConfig

    return ErnieConfig.read(nano)


def test_the_recipe_can_be_written_read_and_built(nano: Path, tmp_path: Path) -> None:
    auto = INT4.model_copy(update={"bits": "auto", "budget": "108 MB"})
    made = of(nano, "108 MB", auto, context=1024).recipe
    path = tmp_path / "mine.toml"
    path.write_text(made.to_toml())
    assert Recipe.read(path) == made
    assert (made.name, made.context, made.bits, made.budget) == ("int4-auto", 1024, None, None)
    assert made.gates == INT4.gates and "108 MB" in made.description


def test_what_the_recipe_says_of_a_layer_stays(nano: Path) -> None:
    half = PartFormat(format="fp16")
    layers = {"1-2": LayerParts(attention=half)}
    parts = INT4.parts.model_copy(update={"layers": layers})
    made = of(nano, "109 MB", INT4.model_copy(update={"parts": parts})).recipe.parts
    assert made.of("attention", 1) == made.of("attention", 2) == half != made.of("attention", 3)


def test_a_budget_that_cannot_be_met_is_told_with_what_would(nano: Path) -> None:
    least = of(nano, "200 MB", INT4).memory.overhead + 10**6
    with pytest.raises(UserError) as caught:
        of(nano, str(least))
    found = re.fullmatch(
        r"The smallest formats need (.+ MB), (.+) more than the budget of (.+)\. Give at least (\d+ MB)\.",
        str(caught.value),
    )
    assert found
    enough = bytes_of(found[4])
    assert of(nano, found[4]).needed <= enough
    with pytest.raises(UserError, match=r", or change: context 2,048 → [\d,]+ \(.+\)\.$"):
        of(nano, str(enough - 2 * 10**6))


def test_float_parts_leave_nothing_to_choose(nano: Path) -> None:
    with pytest.raises(UserError, match="the recipe fp16 leaves nothing to choose"):
        of(nano, "1 GB", Recipe.find("fp16"))
