"""What is offered fits, is the smallest of its kind, and comes first if it costs least."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.checkpoint import shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan.changes import CONTEXT_STEP, LEAST_CONTEXT, changes, furthest
from ernie_export.plan.memory import memory
from ernie_export.plan.setting import Setting
from ernie_export.recipe import Format, LayerParts, PartFormat, Parts, Recipe
from ernie_export.target import Target

THE_21B = ErnieConfig.read(shapes.folder("21b"))
SMALL = ErnieConfig.read(shapes.folder("nano"))
GB = 10**9


def setting(recipe: str = "fp16", context: int = 32768, batch: int = 4) -> Setting:
    return Setting(parts=Recipe.find(recipe).parts, context=context, batch=batch, prompt=512)


def needs(target: str = "l4", config: ErnieConfig = THE_21B):
    return lambda setting: memory(config, Target.find(target), setting).peak


def told(found) -> list[str]:
    return [str(change) for change in found]


def test_the_context_comes_before_the_batch_and_that_before_formats() -> None:
    start = setting()
    found = changes(THE_21B, start, needs()(start) - GB, needs())
    assert told(found) == [
        "context 32,768 → 28,416",
        "batch 4 → 3",
        "attention and shared and dense fp16 → int8",
        "experts fp16 → int8",
    ]


def test_no_change_goes_further_than_it_must() -> None:
    start, available = setting(), needs()(setting()) - GB
    context, batch, *_ = changes(THE_21B, start, available, needs())
    wider = start.model_copy(update={"context": context.setting.context + CONTEXT_STEP})
    assert needs()(context.setting) <= available < needs()(wider)
    assert needs()(start.model_copy(update={"batch": batch.setting.batch + 1})) > available


def test_where_one_change_is_not_enough_two_are_taken() -> None:
    start = setting()
    found = changes(THE_21B, start, 20 * GB, needs())
    assert told(found) == [
        "context 32,768 → 24,832; experts fp16 → int4",
        "batch 4 → 3; experts fp16 → int4",
    ]
    assert all(needs()(change.setting) == change.needs <= 20 * GB for change in found)
    assert all(
        change.saves == sum(step.saves for step in change.steps) == needs()(start) - change.needs
        for change in found
    )


def test_nothing_is_offered_where_all_changes_do_not_do() -> None:
    start = setting()
    least = furthest(THE_21B, start, needs())
    assert changes(THE_21B, start, least.needs - 1, needs()) == []
    assert [change.needs for change in changes(THE_21B, start, least.needs, needs())] == [least.needs]
    assert least.setting.context == LEAST_CONTEXT and least.setting.batch == 1
    assert {form.format for form in least.setting.parts.named().values()} == {"int4"}


def test_what_is_small_already_stays() -> None:
    start = setting("int4", context=512, batch=1)
    assert str(furthest(THE_21B, start, needs())) == "head and embedding int8 → int4; attention int8 → int4"
    whole = start.model_copy(update={"parts": furthest(THE_21B, start, needs()).setting.parts})
    assert furthest(THE_21B, whole, needs()).steps == [] and furthest(THE_21B, whole, needs()).saves == 0


def test_a_format_that_the_shape_cannot_be_stored_in_is_not_offered() -> None:
    odd = THE_21B.model_copy(update={"moe_intermediate_size": 1000, "moe_num_shared_experts": 0})
    start = setting()
    found = furthest(odd, start, lambda setting: memory(odd, Target.find("l4"), setting).peak)
    assert found.setting.parts.experts.format == "fp16" and found.setting.parts.attention.format == "int4"


PARTS = ("experts", "attention", "shared", "dense", "head", "embedding")
FORMS = st.sampled_from(["fp32", "fp16", "int8", "int4"]).map(
    lambda name: PartFormat(format=name, block_size=128 if name.startswith("int") else None)
)


def test_what_single_layers_have_is_changed_too() -> None:
    eight = PartFormat(format="int8", block_size=64)
    parts = Recipe.find("int4").parts.model_copy(update={"layers": {"1-9": LayerParts(experts=eight)}})
    start = Setting(parts=parts, context=1024, batch=1, prompt=512)
    found = changes(THE_21B, start, needs()(start) - 2 * GB, needs())
    assert told(found) == ["experts of layers 1-9 int8 → int4"]
    assert found[0].setting.parts.of("experts", 5) == PartFormat(format="int4", block_size=64)


@settings(max_examples=30, deadline=None)
@given(
    forms=st.lists(FORMS, min_size=6, max_size=6),
    context=st.integers(1, 2048),
    batch=st.integers(1, 64),
    share=st.floats(0.05, 0.99),
    target=st.sampled_from(["cpu", "l4"]),
)
def test_whatever_is_offered_fits(
    forms: list[PartFormat], context: int, batch: int, share: float, target: str
) -> None:
    parts, need = Parts(**dict(zip(PARTS, forms, strict=True))), needs(target, SMALL)
    start = Setting(parts=parts, context=context, batch=batch, prompt=min(512, context))
    available = int(need(start) * share)
    found = changes(SMALL, start, available, need)
    assert all(need(change.setting) <= available for change in found)
    assert len({len(change.steps) for change in found}) <= 1
    if not found:
        assert furthest(SMALL, start, need).needs > available


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_block_size_is_kept(name: Format) -> None:
    parts = Recipe.find("int8").parts
    start = Setting(parts=parts, context=2048, batch=1, prompt=512)
    made = furthest(THE_21B, start, needs()).setting.parts
    assert made.experts == PartFormat(format="int4", block_size=64)
    assert made.head == PartFormat(format="int4", block_size=128)
