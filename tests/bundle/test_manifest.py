from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.bundle.write import seal
from ernie_export.errors import UserError
from ernie_export.validate.report import Claim, Report, Source

patient = settings(deadline=None, max_examples=50)
ENTRY = FileEntry(size=0, sha256="0" * 64)


def with_files(*paths: str) -> Manifest:
    return Manifest(
        checkpoint=Source(name="n", fingerprint="f", architecture="a"),
        recipe="r", target="t", software={}, verdict="passed", claims=[],
        files=dict.fromkeys(paths, ENTRY),
    )  # fmt: skip


def test_it_lists_every_file_but_itself_and_the_report(sealed: Path) -> None:
    read = Manifest.read(sealed)
    assert list(read.files) == [
        "empty", "model.onnx", "provenance.json", "sbom.cdx.json", "weights/layer-00.bin",
        "weights/manifest.json",
    ]  # fmt: skip
    for path, entry in read.files.items():
        data = (sealed / path).read_bytes()
        assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [claim.where for claim in read.claims] == ["built here", "ran here"]


def test_the_report_is_sealed_over_it(sealed: Path) -> None:
    digest = hashlib.sha256((sealed / "manifest.json").read_bytes()).hexdigest()
    assert Report.read(sealed / "report.json").manifest_sha256 == digest


def test_the_same_files_give_the_same_bytes_wherever_and_whenever(
    sealed: Path, report: Report, tmp_path: Path
) -> None:
    again = shutil.copytree(sealed, tmp_path / "elsewhere" / "x")
    later = report.model_copy(update={"time": "2030-01-01T00:00:00+00:00", "timings": {"windows": 9.0}})
    seal(again, later, [Claim(claim="graph", where="built here")])
    assert (again / "manifest.json").read_bytes() == (sealed / "manifest.json").read_bytes()
    assert str(tmp_path).encode() not in (sealed / "manifest.json").read_bytes()
    assert (sealed / "manifest.json").read_bytes().endswith(b"}\n")


def test_known_digests_are_not_read_again(unsealed: Path, report: Report) -> None:
    sealed_with = seal(unsealed, report, [], digests={"model.onnx": "12" * 32})
    assert sealed_with.files["model.onnx"].sha256 == "12" * 32
    assert sealed_with.files["empty"].sha256 == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../../x", "a//b", "a/", "./a", ".", "", "..", "a\\b", "C:x", "a\0b",
     "manifest.json", "report.json"],
)  # fmt: skip
def test_paths_that_lead_out_or_are_spelled_oddly_are_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        with_files(path)


@patient
@given(st.text())
def test_whatever_path_is_taken_stays_inside(path: str) -> None:
    try:
        with_files(path)
    except ValidationError:
        return
    assert (Path("/root/bundle") / path).resolve().is_relative_to("/root/bundle")
    assert Path("/root/bundle") / path != Path("/root/bundle")


def test_hostile_manifests_are_one_clear_line(sealed: Path) -> None:
    path = sealed / "manifest.json"
    whole = json.loads(path.read_bytes())
    whole["files"]["../../x"] = {"size": 1, "sha256": "0" * 64}
    for data in (b"", b"[" * 100_000, b"\xff", b"null", b"{}", json.dumps(whole).encode()):
        path.write_bytes(data)
        with pytest.raises(UserError, match="manifest") as caught:
            Manifest.read(sealed)
        assert "\n" not in str(caught.value)


def test_other_spellings_of_the_same_manifest_are_refused(sealed: Path) -> None:
    path = sealed / "manifest.json"
    twice = path.read_bytes().replace(b'"recipe": "int4"', b'"recipe": "fp32",\n "recipe": "int4"')
    path.write_bytes(twice)
    with pytest.raises(UserError, match="was edited"):
        Manifest.read(sealed)


def test_a_newer_manifest_says_so(sealed: Path) -> None:
    path = sealed / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2'))
    with pytest.raises(UserError, match="schema version 2"):
        Manifest.read(sealed)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is no bundle"):
            Manifest.read(folder)
