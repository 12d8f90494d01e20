from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.checkpoint import shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan.bits import Group, best, costs, groups, options, smallest, with_formats
from ernie_export.plan.memory import memory
from ernie_export.plan.setting import Setting
from ernie_export.recipe import LayerParts, PartFormat, Parts, Recipe
from ernie_export.target import Target

NANO = ErnieConfig.read(shapes.folder("nano"))
THE_21B = ErnieConfig.read(shapes.folder("21b"))
INT4 = Recipe.find("int4").parts
EIGHT, FOUR = options(PartFormat(format="int4", block_size=128))


def setting(parts: Parts = INT4) -> Setting:
    return Setting(parts=parts, context=2048, batch=1, prompt=512)


def test_the_groups_of_a_model() -> None:
    found = groups(THE_21B, INT4)
    assert len(found) == 1 + 28 + 27 + 27 + 1  # embedding and head are one
    assert Group("dense", 0) in found and Group("experts", 0) not in found
    assert str(Group("experts", 3)) == "experts of layer 3" and str(found[0]) == "embedding"


def test_what_is_float_or_told_by_a_layers_own_table_stays() -> None:
    assert Group("embedding", None) not in groups(THE_21B, Recipe.find("int8").parts)  # fp16 there
    assert {group.part for group in groups(THE_21B, Recipe.find("nvfp4").parts)} == {"attention", "embedding"}
    mine = INT4.model_copy(update={"layers": {"2-4": LayerParts(experts=EIGHT)}})
    assert not {Group("experts", layer) for layer in (2, 3, 4)} & set(groups(THE_21B, mine))
    made = with_formats(THE_21B, mine, dict.fromkeys(groups(THE_21B, mine), FOUR))
    assert [made.of("experts", layer) for layer in (1, 2, 4, 5)] == [FOUR, EIGHT, EIGHT, FOUR]


def test_an_own_head_is_chosen_by_itself() -> None:
    untied = NANO.model_copy(update={"tie_word_embeddings": False})
    found = groups(untied, INT4)
    assert Group("head", None) in found and Group("embedding", None) in found
    made = with_formats(untied, INT4, dict.fromkeys(found, EIGHT) | {Group("head", None): FOUR})
    assert (made.head, made.embedding) == (FOUR, EIGHT)
    tied = with_formats(NANO, INT4, {Group("embedding", None): FOUR})
    assert tied.head == tied.embedding == FOUR


def test_formats_that_are_registered_join(monkeypatch: pytest.MonkeyPatch) -> None:
    from ernie_export.plan import bits

    monkeypatch.setattr(bits, "BITS", {"int4": 4})
    assert options(PartFormat(format="int4", block_size=32)) == [PartFormat(format="int4", block_size=32)]


@given(st.integers(0, 2**64), st.sampled_from([NANO, THE_21B]))
@settings(max_examples=20, deadline=None)
def test_the_parts_say_what_was_chosen(seed: int, config: ErnieConfig) -> None:
    choice = {
        group: random.Random(seed + at).choice([EIGHT, FOUR]) for at, group in enumerate(groups(config, INT4))
    }
    made = with_formats(config, INT4, choice)
    assert {group: made.of(group.part, group.layer) for group in choice} == choice
    assert with_formats(config, made, choice) == made


@pytest.mark.parametrize("target", ["cpu", "l4"])
def test_costs_are_what_memory_holds(target: str) -> None:
    found, where = costs(NANO, Target.find(target), setting()), Target.find(target)
    every = {
        form: memory(
            NANO, where, setting(with_formats(NANO, INT4, dict.fromkeys(groups(NANO, INT4), form)))
        ).running
        for form in (EIGHT, FOUR)
    }
    assert every[EIGHT] - every[FOUR] == sum(sizes[EIGHT] - sizes[FOUR] for sizes in found.values())
    one = with_formats(NANO, smallest(NANO, setting()).parts, {Group("experts", 2): EIGHT})
    grown = memory(NANO, where, setting(one)).running - every[FOUR]
    assert grown == found[Group("experts", 2)][EIGHT] - found[Group("experts", 2)][FOUR]


@pytest.mark.parametrize("target", ["cpu", "l4"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_the_best_keeps_to_the_budget_and_spends_it(target: str, share: float) -> None:
    where, chance = Target.find(target), random.Random(3)
    losses = {group: {EIGHT: 0.01, FOUR: chance.uniform(0.1, 1)} for group in groups(THE_21B, INT4)}
    least = memory(THE_21B, where, smallest(THE_21B, setting())).peak
    largest = with_formats(THE_21B, INT4, dict.fromkeys(groups(THE_21B, INT4), EIGHT))
    most = memory(THE_21B, where, setting(largest)).peak
    budget = round(least + share * (most - least))
    made, loss = best(THE_21B, where, setting(), losses, budget)
    needed = memory(THE_21B, where, made).peak
    assert needed <= budget < needed + 600_000_000 or share == 1
    assert loss == pytest.approx(
        sum(losses[group][made.parts.of(group.part, group.layer)] for group in losses)
    )
    if share == 1:
        assert made.parts == largest
    if share == 0:
        assert made.parts.named().keys() == INT4.named().keys() and loss > 10


def test_a_budget_that_nothing_keeps_to() -> None:
    losses = {group: {EIGHT: 0.0, FOUR: 1.0} for group in groups(NANO, INT4)}
    with pytest.raises(ValueError, match="more than the budget"):
        best(NANO, Target.find("cpu"), setting(), losses, 10_000_000)
