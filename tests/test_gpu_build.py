"""ernie-nano for ONNX Runtime on any GPU, from checkpoint to sealed bundle, on a machine without one."""

from __future__ import annotations

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

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("target", "provider"),
    [("cuda", "CUDAExecutionProvider"), ("rtx", "NvTensorRTRTXExecutionProvider")],
)
def test_a_bundle_for_any_gpu(tmp_path: Path, nano: Path, target: str, provider: str) -> None:
    output = tmp_path / "bundle"
    result = pipeline.build(nano, Target.find(target), Recipe.find("int4"), output)
    assert result.verdict == "passed", [gate.message for gate in result.report_data.gates if not gate.passed]
    assert verify(output, Silent()) == []
    where = {claim.claim: claim.where for claim in Manifest.read(output).claims}
    assert where["graph and weights"] == "built here"
    (run,) = [claim for claim in where if claim.startswith("the engine, run by ONNX Runtime with")]
    assert where[run] == "planned"
    assert any("the engine itself has not run" in note for note in result.report_data.notes)
    requires = EngineInfo.read(output).requires
    assert requires and (requires.provider, requires.cuda) == (provider, "13.0")
    with pytest.raises(UserError, match=rf"needs ONNX Runtime with {provider}, .* Get it: pip"):
        open_engine(output)
