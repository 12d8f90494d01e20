from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.bundle.diff import diff
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.write import seal
from ernie_export.errors import UserError
from ernie_export.graph.weights import read_layout
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle


def resealed(folder: Path) -> Path:
    manifest, report = Manifest.read(folder), Report.read(folder / Report.FILE)
    for name in (Manifest.FILE, Report.FILE):
        (folder / name).unlink()
    seal(folder, report, manifest.claims)
    return folder


def test_the_same(bundle: BuiltBundle) -> None:
    found = diff(bundle("int4"), bundle("int4"))
    assert found.same and not found.changes and not found.metrics and not found.files and found.travels == 0
    assert all(part.changed == 0 and part.before == part.after > 0 for part in found.parts)


def test_another_recipe(bundle: BuiltBundle) -> None:
    found = diff(bundle("int4"), bundle("int8"))
    changes = {change.what: (change.before, change.after) for change in found.changes}
    assert changes["recipe"] == ("int4", "int8")
    assert changes["format of experts"] == ("int4, blocks of 128", "int8, blocks of 64")
    assert "checkpoint" not in changes and "fingerprint" not in changes
    parts = {part.part: part for part in found.parts}
    assert (
        parts["experts"].changed == parts["experts"].tensors
        and parts["experts"].after > parts["experts"].before
    )
    assert parts["router"].changed == 0 and parts["router"].before == parts["router"].after
    metrics = {row.name: row for row in found.metrics}
    kl = metrics["logits.kl_mean"]
    assert kl.before is not None and kl.after is not None and kl.after < kl.before
    manifest = Manifest.read(bundle("int8"))
    changed = [file for file in found.files if file.how != "removed"]
    assert all(manifest.files[file.path].size == file.size for file in changed)
    assert found.travels > sum(file.size for file in changed)


def test_one_tensor(bundle: BuiltBundle, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(bundle("int4"), folder)
    file = next(
        file
        for file in read_layout(folder / "model.onnx")
        if any("experts" in stored.name for stored in file.tensors)
    )
    stored = file.tensors[-1]
    data = bytearray((folder / file.path).read_bytes())
    data[stored.offset] ^= 1
    (folder / file.path).write_bytes(data)
    found = diff(bundle("int4"), resealed(folder))
    # The bill of materials and the provenance list every file's digest.
    assert [(change.path, change.how) for change in found.files] == [
        ("provenance.json", "changed"),
        ("sbom.cdx.json", "changed"),
        (file.path, "changed"),
    ]
    assert sum(part.changed for part in found.parts) == 1
    assert not found.changes and not found.metrics and not found.same


def test_no_bundle(bundle: BuiltBundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no bundle"):
        diff(bundle("int4"), tmp_path)


def test_the_command(bundle: BuiltBundle) -> None:
    def run(*words: object) -> str:
        command = [sys.executable, "-m", "ernie_export", "diff", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    told = run(bundle("int4"), bundle("int8"))
    assert "KL divergence, mean" in told and "would travel" in told and "format of experts" in told
    assert json.loads(run(bundle("int4"), bundle("int8"), "--json"))["schema_version"] == 1
    assert run(bundle("int4"), bundle("int4")) == "the same bundle\n"
