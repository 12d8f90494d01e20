"""What makes a bundle a kit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from ernie_export import pipeline
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.engine.info import EngineInfo
from ernie_export.kit import pack
from ernie_export.kit.document import KitPlan
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate.report import Report


def test_a_build_for_a_target_that_is_built_on_it_yields_a_kit(nano: Path, tmp_path: Path) -> None:
    """Though this machine is not one; what it could see of it here, it says."""
    result = pipeline.build(nano, Target.find("arm64"), Recipe.find("int4"), tmp_path / "kit")
    assert result.verdict == "passed" and result.kit and not verify(result.bundle)
    manifest, info = Manifest.read(result.bundle), EngineInfo.read(result.bundle)
    assert {"kit.json", "kit.pyz", "kit/as-it-ships.onnx", "selfcheck.safetensors"} <= manifest.files.keys()
    assert info.requires and info.requires.architecture == "aarch64"
    where = {claim.claim: claim.where for claim in manifest.claims}
    assert where["kit"] == "built here" and "built on target" not in where.values() and manifest.kit is None
    assert Report.read(result.report).target == "arm64"
    again = pipeline.build(nano, Target.find("arm64"), Recipe.find("int4"), tmp_path / "kit")
    assert again.reused and again.kit


def test_the_plan_of_a_kit(kit: Path) -> None:
    plan = KitPlan.load(kit / KitPlan.FILE)
    assert [room.context for room in plan.memory] == [512, 1024, 2048]
    sizes = [room.bytes for room in plan.memory]
    assert sizes == sorted(sizes) and sizes[0] > sum(p.stat().st_size for p in (kit / "weights").iterdir())
    assert plan.prefill == [128, 512, 2048] and [each.context for each in plan.decode] == [128, 1024]
    one, other = (each.bytes for each in plan.decode)
    info = EngineInfo.read(kit)
    assert other - one == (1024 - 128) * 2 * info.num_layers * info.num_key_value_heads * info.head_dim * 4


def test_the_program_is_the_same_bytes_and_no_more_than_it_needs(tmp_path: Path) -> None:
    assert pack.program() == pack.program()
    (tmp_path / "kit.pyz").write_bytes(pack.program())
    with zipfile.ZipFile(tmp_path / "kit.pyz") as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert names[0] == "__main__.py" and "ernie_export/kit/stage.py" in names
    beyond = {
        "quantize",
        "model",
        "graph",
        "generate",
        "reference",
        "distribute",
        "device",
        "cli",
        "checkpoint",
    }
    assert not {name.split("/")[1] for name in names[1:]} & beyond


def test_a_manifest_lists_the_same_for_the_same(kit: Path) -> None:
    files = json.loads((kit / Manifest.FILE).read_bytes())["files"]
    assert len(pack.program()) == files["kit.pyz"]["size"]
