from __future__ import annotations

import pytest

from ernie_export.checkpoint import shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.recipe import PartFormat, Parts, Recipe


@pytest.fixture
def the_21b() -> ErnieConfig:
    return ErnieConfig.read(shapes.folder("21b"))


@pytest.fixture
def int4_everywhere() -> Parts:
    """Block 128: 4.125 bits a weight."""
    part = PartFormat(format="int4", block_size=128)
    return Parts(experts=part, attention=part, shared=part, dense=part, head=part, embedding=part)


@pytest.fixture
def int4_fp16_head(int4_everywhere: Parts) -> Parts:
    """The head tied to the embedding, both fp16: one copy."""
    half = PartFormat(format="fp16")
    return int4_everywhere.model_copy(update={"head": half, "embedding": half})


@pytest.fixture
def recipe(int4_fp16_head: Parts) -> Recipe:
    return Recipe(name="int4-fp16-head", parts=int4_fp16_head)
