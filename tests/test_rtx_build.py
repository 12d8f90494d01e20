"""ernie-nano for an RTX card, from checkpoint to sealed bundle, on a machine without one."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from ernie_export import pipeline
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.open import open_engine
from ernie_export.errors import UserError
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.target import Target

RTX = Target.find("rtx-4090")


def test_a_bundle_with_engines(tmp_path: Path, nano: Path) -> None:
    output = tmp_path / "bundle"
    result = pipeline.build(nano, RTX, Recipe.find("int4"), output)
    assert result.verdict == "passed", [gate.message for gate in result.report_data.gates if not gate.passed]
    assert verify(output, Silent()) == []
    where = {claim.claim: claim.where for claim in Manifest.read(output).claims}
    assert where["engines for compute capability 8.9"] == "built here"
    assert where["the engines, run"] == "planned"
    assert any("the engine itself has not run" in note for note in result.report_data.notes)

    requires = EngineInfo.read(output).requires
    assert requires and requires.engine and requires.prefill
    assert (requires.sm, requires.batch) == (["8.9"], Recipe.find("int4").batch)
    for binary in (requires.engine, requires.prefill):
        assert hashlib.sha256((output / binary.path).read_bytes()).hexdigest() == binary.sha256
    # The weights are the engine's inputs, not in it.
    weights = sum(path.stat().st_size for path in (output / "weights").iterdir())
    assert weights > 6_000_000
    assert "kgen" in (output / "engines/decode.layers.txt").read_text()
    with pytest.raises(UserError):  # no GPU, or none that this version runs it on
        open_engine(output)

    assert pipeline.build(nano, RTX, Recipe.find("int4"), output).reused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "recipe", "sm"),
    [("rtx-4090", "fp8", "8.9"), ("rtx-5090", "fp8", "12.0"), ("rtx-5090", "nvfp4", "12.0")],
)
def test_weights_in_small_floats(tmp_path: Path, nano: Path, target: str, recipe: str, sm: str) -> None:
    output = tmp_path / "bundle"
    result = pipeline.build(nano, Target.find(target), Recipe.find(recipe), output)
    assert result.verdict == "passed", [gate.message for gate in result.report_data.gates if not gate.passed]
    assert verify(output, Silent()) == []
    requires = EngineInfo.read(output).requires
    assert requires and requires.sm == [sm]
    # E4M3 is what the kernels themselves read: codes of fp8, scales of nvfp4.
    read = "layers.1.experts.gate_up" if recipe == "fp8" else "layers.1.experts.gate_up_scales"
    for phase in ("decode", "prefill"):
        layers = (output / f"engines/{phase}.layers.txt").read_text()
        (given,) = set(re.findall(rf"Name: {re.escape(read)}, [^}}]*?Datatype: (\w+)", layers))
        assert given == "FP8"


def test_without_the_builder_nothing_is_begun(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    with pytest.raises(UserError, match=r"built with tensorrt_rtx, which does not load here"):
        pipeline.build(nano, RTX, Recipe.find("int4"), tmp_path / "bundle")
    assert not (tmp_path / ".bundle.partial/bundle/model.onnx").exists()


@pytest.mark.slow
def test_the_same_inputs_give_the_same_engines(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the folder is called, and whatever else the environment holds."""
    engines = ("engines/decode.engine", "engines/prefill.engine", "engines/decode.layers.txt")
    made = []
    for name in ("bundle", "a-bundle-whose-folder-has-a-much-longer-name"):
        monkeypatch.setenv("ERNIE_EXPORT_TEST", name * 40)
        output = tmp_path / name
        assert pipeline.build(nano, RTX, Recipe.find("int4"), output).verdict == "passed"
        made.append([(output / engine).read_bytes() for engine in engines])
    assert made[0] == made[1]
