from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.errors import UserError
from ernie_export.recipe import Gate
from ernie_export.validate.gates import METRICS, evaluate, require_known
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle

patient = settings(deadline=None, max_examples=50)
CLEAN = {"logits.non_finite": 0.0}


@pytest.mark.parametrize(
    ("value", "gate", "passed", "says"),
    [
        (0.5, Gate(max=0.5), True, "is 0.5"),
        (0.50001, Gate(max=0.5), False, "must be at most 0.5"),
        (0.5, Gate(min=0.5), True, "is 0.5"),
        (0.49999, Gate(min=0.5), False, "must be at least 0.5"),
        (1.0, Gate(min=0.9, max=1.1), True, "is 1"),
        (1.2, Gate(min=0.9, max=1.1), False, "at most"),
        (0.8, Gate(min=0.9, max=1.1), False, "at least"),
        (math.nan, Gate(min=-1e308, max=1e308), False, "is not a number"),
        (math.inf, Gate(max=1e308), False, "at most"),
        (-math.inf, Gate(min=-1e308), False, "at least"),
        (None, Gate(min=0), False, "was not measured"),
    ],
)
def test_gates(value: float | None, gate: Gate, passed: bool, says: str) -> None:
    metrics = CLEAN if value is None else {**CLEAN, "x.y": value}
    result, always = evaluate(metrics, {"x.y": gate})
    assert (result.name, result.min, result.max, result.passed) == ("x.y", gate.min, gate.max, passed)
    assert result.message.startswith("x.y")
    assert says in result.message
    assert always.passed


@pytest.mark.parametrize("metrics", [{}, {"logits.non_finite": 1.0}, {"logits.non_finite": math.nan}])
def test_non_finite_logits_fail_whatever_a_recipe_says(metrics: dict[str, float]) -> None:
    for gates in ({}, {"logits.non_finite": Gate(max=1e9)}):
        (result,) = evaluate(metrics, gates)
        assert not result.passed


@patient
@given(st.floats(), st.floats(allow_nan=False, allow_infinity=False))
def test_a_gate_that_passes_bounds_its_value(value: float, bound: float) -> None:
    below, _ = evaluate({**CLEAN, "x": value}, {"x": Gate(max=bound)})
    above, _ = evaluate({**CLEAN, "x": value}, {"x": Gate(min=bound)})
    assert below.passed == (value <= bound)
    assert above.passed == (value >= bound)


def test_gates_need_no_torch() -> None:
    """A device that has neither torch nor transformers evaluates them too."""
    code = (
        "import sys, ernie_export.validate.gates;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'onnx', 'polygraphy', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_gate_on_what_is_not_measured_is_found_before_the_work() -> None:
    require_known(["logits.kl_mean", "memory.peak_bytes"])
    with pytest.raises(UserError, match=r"gate on operators\.expert_error, which is not measured") as caught:
        require_known(["logits.kl_mean", "operators.expert_error"])
    assert caught.value.remedy.startswith("Did you mean operators.experts_error?")


def test_metrics_are_all_that_is_measured(bundle: BuiltBundle) -> None:
    assert Report.read(bundle("int4") / Report.FILE).metrics.keys() == set(METRICS)
