from __future__ import annotations

import pytest

from ernie_export.checkpoint import shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.errors import UserError
from ernie_export.plan.plan import plan
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


ELSEWHERE = "is built for TensorRT for RTX alone. Build for "


@pytest.mark.parametrize(
    ("recipe", "takers", "refused"),
    [
        (
            "fp8",
            ["rtx-4090", "rtx-5090", "rtx-pro-6000"],
            {"cpu": ELSEWHERE, "cuda": ELSEWHERE, "jetson-thor-t5000": ELSEWHERE, "h100": ELSEWHERE},
        ),
        (
            "nvfp4",
            ["rtx-5090", "rtx-pro-6000"],
            {
                "rtx-4090": "its GPU is of SM 8.9, and nvfp4 begins with 10.0. Build for ",
                "cpu": ELSEWHERE, "jetson-thor-t5000": ELSEWHERE, "b200": ELSEWHERE,
            },
        ),
    ],
)  # fmt: skip
def test_who_takes_small_floats(recipe: str, takers: list[str], refused: dict[str, str]) -> None:
    for target in takers:
        require_taken(Target.find(target), Recipe.find(recipe))
    for target, why in refused.items():
        with pytest.raises(UserError) as caught:
            require_taken(Target.find(target), Recipe.find(recipe))
        said = str(caught.value)
        assert said.startswith(f"The target {target} does not take {recipe} for experts: ")
        assert said.endswith(f"{why}{', '.join(takers)}, or with the recipe int4.")


def test_a_plan_is_refused_as_a_build_is() -> None:
    config = ErnieConfig.read(shapes.folder("21b"))
    with pytest.raises(UserError, match="rtx-4090 does not take nvfp4"):
        plan(config, Target.find("rtx-4090"), Recipe.find("nvfp4"), "21b", context=4096)
    whole = plan(config, Target.find("rtx-5090"), Recipe.find("nvfp4"), "21b", context=4096)
    # Four bits, an E4M3 for 16, and an fp32 a matrix.
    assert whole.weight_files["experts"] == 27 * 64 * (3 * 2560 * 1536 * 9 // 16 + 2 * 4)
    of_one, *_ = whole.traffic
    assert of_one.weights["experts"] == whole.weight_files["experts"] * 6 // 64


def test_less_is_offered_in_formats_that_every_target_has() -> None:
    config = ErnieConfig.read(shapes.folder("21b"))
    found = plan(config, Target.find("rtx-4090"), Recipe.find("fp8"), "21b", context=131072)
    assert found.changes and not found.fits
    for change in [*found.changes, found.furthest]:
        formats = {form.format for form in change.setting.parts.named().values()}
        assert formats <= {"fp16", "fp8", "int8", "int4"}
