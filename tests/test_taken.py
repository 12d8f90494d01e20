from __future__ import annotations

import pytest

from ernie_export.errors import UserError
from ernie_export.recipe import PartFormat, Recipe
from ernie_export.taken import require_taken
from ernie_export.target import Target

INT4 = Recipe.find("int4")


def with_experts(form: str, block: int) -> Recipe:
    experts = PartFormat.model_validate({"format": form, "block_size": block})
    return INT4.model_copy(update={"parts": INT4.parts.model_copy(update={"experts": experts})})


@pytest.mark.parametrize("target", ["cpu", "cuda", "rtx", "rtx-4090"])
@pytest.mark.parametrize("recipe", ["fp16", "int4", "int4-gptq"])
def test_what_is_taken(target: str, recipe: str) -> None:
    require_taken(Target.find(target), Recipe.find(recipe))


@pytest.mark.parametrize(
    ("target", "recipe", "said"),
    [
        ("cuda", with_experts("int4", 32), r"cuda does not take int4 .* no blocks of 32\. .* 64 or 128\.$"),
        ("rtx", with_experts("int8", 128), r"rtx does not take int8 .* 4 bits only\. Give"),
    ],
)
def test_what_is_not(target: str, recipe: Recipe, said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_taken(Target.find(target), recipe)
    require_taken(Target.find("cpu"), recipe)
