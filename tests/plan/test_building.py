from __future__ import annotations

import pytest

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan import machine
from ernie_export.plan.building import Building, building, validated
from ernie_export.plan.setting import Setting
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate.sample import Sample


def of(config: ErnieConfig, recipe: str = "int4", threads: int | None = None) -> Building:
    found = Recipe.find(recipe)
    setting = Setting(parts=found.parts, context=2048, batch=1, prompt=512)
    return building(config, Target.find("cpu"), setting, 5, found.calibration, threads)


def test_it_is_validated_on_what_a_sample_has() -> None:
    sample, long = Sample(), Setting(parts=Recipe.find("int4").parts, context=131072, batch=64, prompt=4096)
    found = validated(long)
    assert (found.context, found.prompt, found.batch) == (
        sample.window_tokens,
        sample.window_tokens,
        sample.batch,
    )
    assert validated(long.model_copy(update={"context": 100})).prompt == 100


def layers(config: ErnieConfig, count: int) -> ErnieConfig:
    return config.model_copy(update={"num_hidden_layers": count, "moe_layer_end_index": count - 1})


def test_validation_takes_the_way_that_the_memory_leads_to(
    the_21b: ErnieConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (1 << 40, 1 << 40))
    whole = of(the_21b).validation
    monkeypatch.setattr(machine, "memory", lambda: (8 << 30, 8 << 30))
    assert of(the_21b).validation < 10 << 30 < 2 * (10 << 30) < whole


def test_the_peak_is_that_of_the_hungriest_stage(the_21b: ErnieConfig) -> None:
    found = of(the_21b)
    assert found.peak == max(found.trace, found.weights, found.validation)
    assert found.disk == 5 and found.calibration is None
    calibrated = of(the_21b, "int4-gptq")
    assert (
        calibrated.peak
        >= calibrated.calibration
        == max(calibrated.calibration or 0, calibrated.trace, calibrated.weights)
    )


def test_tracing_and_writing_do_not_grow_with_the_layers(
    the_21b: ErnieConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 3 GiB for the 21B, and the same at 8 and 28 layers within 10 %."""
    monkeypatch.setattr(machine, "memory", lambda: (8 << 30, 8 << 30))
    few, all_ = (of(layers(the_21b, count), threads=2) for count in (8, 28))
    assert all_.weights < 3 << 30
    assert few.weights == pytest.approx(all_.weights, rel=0.1)
    assert few.validation < all_.validation


def test_each_thread_of_the_writer_holds_the_gate_and_up_of_an_expert(the_21b: ErnieConfig) -> None:
    one, two = (of(the_21b, "int4", threads) for threads in (1, 2))
    pair = 2 * 1536 * 2560 * 2
    assert pair < two.weights - one.weights < 3 * pair
    assert of(the_21b).weights >= one.weights
    assert of(the_21b, "fp32", 2).weights == two.weights
