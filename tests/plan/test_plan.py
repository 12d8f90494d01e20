from __future__ import annotations

import json
from pathlib import Path

import pytest

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.errors import UserError
from ernie_export.plan import machine
from ernie_export.plan.plan import Plan, plan
from ernie_export.recipe import Recipe
from ernie_export.target import Target


def of(config: ErnieConfig, target: str, recipe: Recipe, **use: int) -> Plan:
    return plan(config, Target.find(target), recipe, "some", **use)


ANY_GPU = ("cuda", "rtx")


@pytest.mark.parametrize("target", [target.name for target in Target.all() if target.name not in ANY_GPU])
def test_every_target_can_be_planned_for(target: str, the_21b: ErnieConfig, recipe: Recipe) -> None:
    found = of(the_21b, target, recipe, context=4096)
    assert found.fits == (found.needed <= found.available)
    assert found.needed == max(found.memory.running, found.memory.opening)
    assert found.fits or found.changes or found.furthest.needs > found.available
    assert Plan.model_validate_json(found.model_dump_json()) == found
    said = " ".join(found.assumptions.values())
    figures = Target.find(target)
    for figure in (figures.memory, figures.reserved, figures.bandwidth):
        assert figure is None or figure.source in said
    assert figures.note in said


@pytest.mark.parametrize("target", ANY_GPU)
def test_any_card_is_none_to_plan_for(target: str, the_21b: ErnieConfig, recipe: Recipe) -> None:
    with pytest.raises(
        UserError,
        match=r"is for any card, and so has no memory .* `--memory 24GB`, .* by its name: `--target l4`",
    ):
        of(the_21b, target, recipe)
    card = Target.find(target).of_size(24 << 30, None)
    found = plan(the_21b, card, recipe, "the 21B", 4096)
    assert found.fits and found.available == 24 << 30 and found.bandwidth is None
    assert found.needed < of(the_21b, "l4", recipe, context=4096).needed * 1.1
    assert "say it with --bandwidth" in found.assumptions["bandwidth"]
    assert not plan(the_21b, card.of_size(8 << 30, 300), recipe, "the 21B", 4096).fits
    rate = plan(the_21b, card.of_size(None, 300), recipe, "the 21B", 4096).traffic[0].tokens_per_second
    assert rate == of(the_21b, "l4", recipe, context=4096).traffic[0].tokens_per_second


@pytest.mark.parametrize(
    ("target", "fits"),
    [
        ("jetson-orin-nano-8gb", False),
        ("jetson-orin-nx-16gb", True),
        ("jetson-agx-orin-32gb", True),
        ("jetson-agx-orin-64gb", True),
        ("l4", True),
        ("h100", True),
    ],
)
def test_where_the_21b_fits_in_int4(target: str, fits: bool, the_21b: ErnieConfig, recipe: Recipe) -> None:
    found = of(the_21b, target, recipe, context=4096)
    assert found.fits == fits
    if not fits:  # nothing there is makes it fit: 2-bit experts would
        assert found.changes == [] and found.furthest.needs > found.available


def test_the_context_is_the_asked_one_then_the_recipes_then_the_promised_one(
    the_21b: ErnieConfig, recipe: Recipe
) -> None:
    short = recipe.model_copy(update={"context": 300})
    assert of(the_21b, "l4", recipe).setting.context == 131072
    assert of(the_21b, "l4", short).setting.context == 300
    assert of(the_21b, "l4", short).setting.prompt == 300
    assert of(the_21b, "l4", short, context=400).setting.context == 400
    with pytest.raises(UserError, match=r"A context of 131073 is asked for, the checkpoint promises 131072"):
        of(the_21b, "l4", recipe, context=131073)


def test_speed_is_told_at_one_row_and_at_the_planned_batch(the_21b: ErnieConfig, recipe: Recipe) -> None:
    assert [each.batch for each in of(the_21b, "l4", recipe, batch=8).traffic] == [1, 8]
    assert [each.batch for each in of(the_21b, "l4", recipe).traffic] == [1]
    assert "experts" in of(the_21b, "l4", recipe, batch=8).assumptions
    assert "experts" not in of(the_21b, "l4", recipe).assumptions


def test_this_machines_memory_and_bandwidth_are_measured(
    the_21b: ErnieConfig, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (8 << 30, 3 << 30))
    monkeypatch.setattr(machine, "bandwidth", lambda: 2e10)
    found = of(the_21b, "cpu", recipe)
    assert (found.available, found.bandwidth) == (3 << 30, 2e10)
    assert found.assumptions["bandwidth"] == "20.0 GB/s, measured now"
    monkeypatch.setattr(machine, "bandwidth", lambda: None)
    found = of(the_21b, "cpu", recipe)
    assert found.traffic[0].tokens_per_second is None and found.traffic[0].bytes > 0
    assert found.assumptions["bandwidth"].startswith("unknown")


def test_scratch_memory_of_rtx_is_the_builders(the_21b: ErnieConfig, recipe: Recipe) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "rtx.json"
    rows = json.loads(results.read_text())["rows"]
    said = rows["experts of the 21B, prefill"]["scratch_bytes"]
    logits = 4 * the_21b.vocab_size
    assert of(the_21b, "rtx-4090", recipe).memory.activations - logits == pytest.approx(said, rel=0.01)


def test_a_cpu_of_a_size_that_somebody_names(the_21b: ErnieConfig, recipe: Recipe) -> None:
    named = plan(the_21b, Target.find("cpu").of_size(64 << 30, 300), recipe, "the 21B", 4096)
    assert named.available == 64 << 30 and named.memory.overhead == of(the_21b, "cpu", recipe).memory.overhead
    assert named.assumptions["memory"] == "65,536 MiB (as asked for)"
    assert named.assumptions["bandwidth"] == "300.0 GB/s, as asked for"
    assert "ONNX Runtime" in named.assumptions["engine"]
