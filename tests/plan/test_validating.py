from __future__ import annotations

import pytest

from ernie_export.checkpoint import embedded
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan import validating
from ernie_export.plan.memory import Memory, memory
from ernie_export.plan.setting import Setting
from ernie_export.recipe import Recipe
from ernie_export.target import Target


def engine(config: ErnieConfig, recipe: str = "int4") -> Memory:
    setting = Setting(parts=Recipe.find(recipe).parts, context=512, batch=4, prompt=512)
    return memory(config, Target.find("cpu"), setting)


def with_layers(config: ErnieConfig, count: int) -> ErnieConfig:
    return config.model_copy(update={"num_hidden_layers": count, "moe_layer_end_index": count - 1})


def test_the_21b_is_validated_layer_by_layer_within_ten_gib(the_21b: ErnieConfig) -> None:
    """One MoE layer in fp32 takes 3.2 GB; whole, the INT4 engine alone takes more than 10 GB, twice."""
    assert 3.2e9 < validating.by_layer(the_21b) < 10 << 30
    assert validating.whole(the_21b, engine(the_21b)) > 2 * validating.by_layer(the_21b)


def test_layer_by_layer_it_hardly_grows_with_the_layers(the_21b: ErnieConfig) -> None:
    few, all_ = (validating.by_layer(with_layers(the_21b, count)) for count in (8, 28))
    assert few == pytest.approx(all_, rel=0.1)


def test_a_small_model_is_validated_whole_in_little(the_21b: ErnieConfig) -> None:
    nano = ErnieConfig.read(embedded.folder())
    assert validating.whole(nano, engine(nano)) < 2 << 30
