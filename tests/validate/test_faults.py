"""No bundle with a planted fault passes, and validation names the place of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_export.recipe import Recipe
from ernie_export.validate.run import validate
from ernie_export.validate.sample import Sample
from tests.validate.faults import CASES, Fault, outcome

QUICK = Sample(
    windows=1, window_tokens=192, prompts=1, prompt_tokens=16, new_tokens=8, decode_tokens=16, batch=2
)


@pytest.mark.parametrize("recipe", ["int4", "fp32"])
def test_without_a_fault_no_operator_and_no_weight_is_blamed(
    bundle: Callable[[str], Path], nano: Path, recipe: str
) -> None:
    # The text is too short for what only holds on average.
    gates = {
        name: gate
        for name, gate in Recipe.find(recipe).gates.items()
        if not name.startswith(("perplexity.", "greedy."))
    }
    report = validate(bundle(recipe), nano, gates, recipe=recipe, target="cpu", sample=QUICK)
    assert report.verdict == "passed", [gate.message for gate in report.gates if not gate.passed]
    assert report.fault is None


@pytest.mark.parametrize(
    ("fault", "recipe"), CASES, ids=[f"{fault.name}-{recipe}".replace(" ", "-") for fault, recipe in CASES]
)
def test_a_fault_is_stopped_and_its_place_named(
    fault: Fault, recipe: str, bundle: Callable[[str], Path], nano: Path, tmp_path: Path
) -> None:
    sound = bundle(recipe) if not fault.checkpoint else tmp_path
    found = outcome(fault, Recipe.find(recipe), sound, nano, tmp_path, QUICK)
    assert fault.gate in found.gates, found
    assert found.right(fault), found
