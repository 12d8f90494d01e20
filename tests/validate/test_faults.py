"""No bundle with a planted fault passes, and validation names the place of each.

Each fault is planted in its first format; in the others too where there is time (`make test-slow`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_export.recipe import Recipe
from ernie_export.validate.run import validate
from tests.validate.fault import Fault, outcome, quick
from tests.validate.faults import CASES

PARAMETERS = [
    pytest.param(
        fault,
        recipe,
        id=f"{fault.name}-{recipe}".replace(" ", "-"),
        marks=[] if recipe == fault.recipes[0] else pytest.mark.slow,
    )
    for fault, recipe in CASES
]


@pytest.mark.parametrize("recipe", ["int4", "fp32"])
def test_without_a_fault_no_operator_and_no_weight_is_blamed(
    bundle: Callable[[str], Path], nano: Path, recipe: str, tmp_path: Path
) -> None:
    # The text is too short for what only holds on average.
    gates = {
        name: gate
        for name, gate in Recipe.find(recipe).gates.items()
        if not name.startswith(("perplexity.", "greedy."))
    }
    report = validate(bundle(recipe), nano, gates, recipe=recipe, target="cpu", sample=quick(tmp_path))
    assert report.verdict == "passed", [gate.message for gate in report.gates if not gate.passed]
    assert report.fault is None


@pytest.mark.parametrize(("fault", "recipe"), PARAMETERS)
def test_a_fault_is_stopped_and_its_place_named(
    fault: Fault, recipe: str, bundle: Callable[[str], Path], nano: Path, tmp_path: Path
) -> None:
    sound = bundle(recipe) if not fault.checkpoint else tmp_path
    found = outcome(fault, Recipe.find(recipe), sound, nano, tmp_path, quick(tmp_path))
    assert fault.gate in found.gates, found
    assert found.right(fault), found
