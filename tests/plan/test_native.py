"""That a plan knows which graphs the native operators take over: as the graph itself says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.engine.native_library import suits
from ernie_export.engine.opened_graph import opened_graph
from ernie_export.plan.native import runs_natively
from ernie_export.plan.setting import Setting
from ernie_export.recipe import LayerParts, PartFormat, Parts, Recipe
from ernie_export.target import Target


def planned(config: ErnieConfig, parts: Parts, target: str = "cpu", native: bool = True) -> bool:
    setting = Setting(parts=parts, context=512, batch=1, prompt=512, native=native)
    return runs_natively(config, Target.find(target), setting)


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4", "int4-small"])
def test_as_the_graph_says(bundle: Callable[[str], Path], nano: Path, recipe: str) -> None:
    taken = planned(ErnieConfig.read(nano), Recipe.find(recipe).parts)
    assert taken == suits(opened_graph(bundle(recipe) / "model.onnx")) == recipe.startswith("int")


def test_where_they_are_and_everything_suits(the_21b: ErnieConfig, int4_everywhere: Parts) -> None:
    assert planned(the_21b, int4_everywhere)
    assert not planned(the_21b, int4_everywhere, native=False)
    assert not planned(the_21b, int4_everywhere, "h100")
    assert not planned(the_21b, int4_everywhere, "x86-64")  # a kit
    half = PartFormat(format="fp16")
    assert planned(the_21b, int4_everywhere.model_copy(update={"attention": half}))
    one_layer = int4_everywhere.model_copy(update={"layers": {"3": LayerParts(experts=half)}})
    assert not planned(the_21b, one_layer)
    narrow = PartFormat(format="int4", block_size=32)
    small = the_21b.model_copy(update={"moe_intermediate_size": 96})
    blocks = {part: narrow for part in ("experts", "shared", "dense", "attention", "head", "embedding")}
    assert not planned(small, int4_everywhere.model_copy(update=blocks))
    assert not planned(the_21b.model_copy(update={"head_dim": 72}), int4_everywhere)
