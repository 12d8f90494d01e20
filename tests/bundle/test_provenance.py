"""Where a bundle came from, in the words of in-toto and SLSA, as their own packages read them."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

import ernie_export
from ernie_export.bundle import provenance as module
from ernie_export.bundle.diff import diff
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.provenance import Provenance, source_commit
from ernie_export.bundle.verify import Problem, verify
from ernie_export.bundle.write import seal
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.digest import sha256_of
from ernie_export.errors import UserError
from ernie_export.progress import Silent
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle


def test_it_is_in_toto_and_slsa(bundle: BuiltBundle, nano: Path) -> None:
    folder = bundle("int4")
    data = json.loads((folder / Provenance.FILE).read_bytes())
    statement = json_format.ParseDict(data, statement_pb2.Statement())  # it refuses what it does not know
    Statement.copy_from_pb(statement).validate()
    slsa = json_format.ParseDict(data["predicate"], provenance_pb2.Provenance())
    manifest = Manifest.read(folder)
    subjects = {each["name"]: each["digest"]["sha256"] for each in data["subject"]}
    assert subjects == {name: sha256_of(folder / name) for name in manifest.files if name != Provenance.FILE}
    definition = slsa.build_definition
    assert dict(definition.external_parameters) == {
        "checkpoint": manifest.checkpoint.name, "recipe": "int4", "target": "cpu",
    }  # fmt: skip
    found = {each.name: each for each in definition.resolved_dependencies}
    fingerprint = Checkpoint.open(nano).fingerprint(Silent())
    assert found["checkpoint"].digest["ernieExportFingerprint"] == fingerprint
    assert found["recipe.toml"].digest["sha256"] == manifest.files["recipe.toml"].sha256
    assert found["torch"].uri == f"pkg:pypi/torch@{metadata.version('torch')}".replace("+", "%2B")
    assert slsa.run_details.builder.id == f"pkg:pypi/ernie-export@{ernie_export.__version__}"


def test_what_it_tells(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Provenance.read(sealed)
    assert told and told.told().startswith("built from nano (fingerprint abababababab) by ernie-export ")
    assert told.told().endswith("as int4 for cpu")
    assert told.fingerprint == "ab" * 32


def test_the_commit_is_noted_and_a_difference_shown(
    bundle: BuiltBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for number, folder in enumerate(folders):
        subprocess.run(["cp", "-r", str(bundle("int4")), str(folder)], check=True)
        monkeypatch.setattr(module, "source_commit", lambda number=number: f"{number}" * 40)
        seal(folder, Report.read(folder / Report.FILE), [])
        made = Provenance.read(folder)
        assert made and made.commit == f"{number}" * 40 and f"of commit {number}{number}" in made.told()
    changes = {change.what: (change.before, change.after) for change in diff(*folders).changes}
    assert changes == {"commit": ("0" * 40, "1" * 40)}


def test_the_source_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return ran.stdout.strip()

    class Noted:
        def __init__(self, text: str | None):
            self.text = text

        def read_text(self, name: str) -> str | None:
            return self.text if name == "direct_url.json" else None

    package = tmp_path / "ernie_export"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(ernie_export, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(metadata, "distribution", lambda name: Noted(None))
    assert source_commit() is None  # no checkout
    git("init", "-q")
    assert source_commit() is None  # no commit
    git("add", ".")
    git("commit", "-qm", "first")
    assert source_commit() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed")
    assert source_commit() is None
    noted = json.dumps({"vcs_info": {"vcs": "git", "commit_id": "c0ffee"}})
    monkeypatch.setattr(metadata, "distribution", lambda name: Noted(noted))
    assert source_commit() == "c0ffee"


def test_one_of_other_files_or_another_checkpoint_is_a_problem(sealed: Path, report: Report) -> None:
    def resealed_over(text: str) -> list[Problem]:
        """The manifest and the report say that the provenance is as it is now."""
        (sealed / Provenance.FILE).write_text(text)
        manifest = Manifest.read(sealed)
        entry = manifest.files[Provenance.FILE].model_copy(
            update={"size": len(text), "sha256": sha256_of(sealed / Provenance.FILE)}
        )
        manifest = manifest.model_copy(update={"files": {**manifest.files, Provenance.FILE: entry}})
        manifest.write(sealed / Manifest.FILE)
        digest = sha256_of(sealed / Manifest.FILE)
        report.model_copy(update={"manifest_sha256": digest}).write(sealed / Report.FILE)
        return verify(sealed)

    right = (sealed / Provenance.FILE).read_text()
    assert resealed_over(right) == []
    for wrong, message in (
        (right.replace("ab" * 32, "cd" * 32), "is of another checkpoint than the manifest"),
        (right.replace('"model.onnx"', '"other.onnx"'), "tells of other files than the manifest lists"),
    ):
        assert resealed_over(wrong) == [Problem(Provenance.FILE, message)]
    (problem,) = resealed_over("{}")
    assert problem.path == Provenance.FILE and "is no provenance of a bundle" in problem.message


def test_a_bundle_without_one(tmp_path: Path) -> None:
    assert Provenance.read(tmp_path) is None
    (tmp_path / Provenance.FILE).write_text("[")
    with pytest.raises(UserError, match="no provenance"):
        Provenance.read(tmp_path)
