"""An engine of TensorRT's, through every gate: itself where it can be asked, its graph where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.bench.bench import bench
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.validate.run import validate
from ernie_export.validate.sample import Sample
from tests.conftest import BuiltBundle
from tests.doubles import driver, making


@pytest.fixture
def folder(bundle: BuiltBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    whole = bundle("int4")
    making.take_its_place(monkeypatch, tmp_path / "graphs")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver.compiled(tmp_path / "driver").parent))
    return making.built(whole, tmp_path / "bundle", tmp_path / "graphs")


@pytest.mark.slow
def test_it_is_validated_against_transformers(folder: Path, nano: Path) -> None:
    recipe = Recipe.find("int4")
    sample = Sample(windows=4, window_tokens=128, prompts=2, prompt_tokens=8, new_tokens=8, decode_tokens=8)
    report = validate(
        folder, nano, recipe.gates, recipe="int4", target="jetson-agx-orin-64gb", sample=sample, way="whole"
    )
    assert report.verdict == "passed", [gate.message for gate in report.gates if not gate.passed]
    assert any(note.startswith("Operators and layers were tried in the graph") for note in report.notes)
    assert {"routing.agreement", "greedy.agreement", "decode.max_difference"} <= report.metrics.keys()
    assert "a batch of 2" in {claim.claim for claim in report.claims}


@pytest.mark.slow
def test_it_is_measured(folder: Path) -> None:
    measured = bench(folder, Silent(), [16], [16], 4, 1)
    assert measured.decode[0].tokens_per_second > 0 and measured.opening.cold.seconds > 0
