"""Kits for arm64 and for a Jetson in an aarch64 Linux that has Python, numpy and ONNX Runtime alone, under qemu."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.engine.info import EngineInfo
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle
from tests.kit import making
from tests.kit.test_tensorrt import placed


@pytest.mark.slow
def test_a_kit_is_built_on_aarch64(bundle: BuiltBundle, tmp_path: Path) -> None:
    if not making.ARM64.exists():
        pytest.skip("there is no aarch64 Linux here: run `make system-deps`")
    kit = making.packed(bundle("int4"), tmp_path / "kit", "arm64")
    ran = making.run(making.ARM64, kit, "build", "--context", "512")
    assert ran.returncode == 0, ran.stderr
    built = tmp_path / "kit-built"
    assert not verify(built)
    report = Report.read(built / Report.FILE)
    assert report.machine["architecture"] == "aarch64" and report.verdict == "passed"
    assert report.metrics["routing.agreement"] > 0.85 and report.speed
    assert {"built on target", "ran on target"} <= {claim.where for claim in Manifest.read(built).claims}


@pytest.mark.slow
def test_a_kit_for_a_jetson_is_built_on_aarch64(bundle: BuiltBundle, tmp_path: Path) -> None:
    """Doubles in the place of TensorRT, CUDA Python and the driver; weights are read where they are mapped."""
    if not making.ARM64.exists():
        pytest.skip("there is no aarch64 Linux here: run `make system-deps`")
    packages = {"TENSORRT_DOUBLE_SITE": str(making.ARM64.parent / "packages"), "CUDA_DOUBLE_INTEGRATED": "1"}
    compiler = "aarch64-linux-gnu-gcc"
    place = placed(bundle("int4"), tmp_path, "jetson-agx-orin-64gb", making.ARM64, compiler, **packages)
    ran = making.run(place.python, place.kit, "build", "--context", "512", **place.environment)
    assert ran.returncode == 0, ran.stderr
    built = tmp_path / "kit-built"
    assert not verify(built)
    report, requires = Report.read(built / Report.FILE), EngineInfo.read(built).requires
    assert report.machine["architecture"] == "aarch64" and report.machine["sm"] == "8.7"
    assert report.verdict == "passed" and report.metrics["routing.agreement"] > 0.85
    assert requires and requires.engine and requires.versions == ["10.16.0"]
    assert {"built on target", "ran on target"} <= {claim.where for claim in Manifest.read(built).claims}
