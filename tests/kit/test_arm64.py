"""A kit for arm64 in an aarch64 Linux that has Python, numpy and ONNX Runtime alone, under qemu."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle
from tests.kit import making


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
