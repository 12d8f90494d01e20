from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import Problem, verify
from ernie_export.bundle.write import seal
from ernie_export.errors import UserError
from ernie_export.validate.report import Report

FILES = ["model.onnx", "weights/layer-00.bin", "weights/manifest.json", "manifest.json", "report.json"]
on_one_bundle = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    yield
    path.write_bytes(before)


def paths(problems: list[Problem]) -> list[str]:
    return [problem.path for problem in problems]


def test_a_whole_bundle_has_no_problems(sealed: Path) -> None:
    assert verify(sealed) == []


def test_a_copy_is_as_good(sealed: Path, tmp_path: Path) -> None:
    assert verify(shutil.copytree(sealed, tmp_path / "copy")) == []


@on_one_bundle
@given(st.data())
def test_one_changed_byte_anywhere_is_found(sealed: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    whole = (sealed / name).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    with changed(sealed / name, whole[:at] + bytes([other]) + whole[at + 1 :]):
        assert name in paths(verify(sealed))
    assert verify(sealed) == []


@on_one_bundle
@given(st.sampled_from(FILES), st.booleans())
def test_a_shorter_or_longer_file_is_found(sealed: Path, name: str, longer: bool) -> None:
    whole = (sealed / name).read_bytes()
    with changed(sealed / name, whole + b"\n" if longer else whole[:-1]):
        assert name in paths(verify(sealed))


@pytest.mark.parametrize("name", ["model.onnx", "empty", "weights/layer-00.bin", "report.json"])
def test_a_missing_file_is_found(sealed: Path, name: str) -> None:
    (sealed / name).unlink()
    assert verify(sealed) == [Problem(name, "is missing")]


@pytest.mark.parametrize("name", ["new", "weights/new", ".hidden", "deep/er/new", "weights/report.json"])
def test_a_file_too_many_is_found(sealed: Path, name: str) -> None:
    (sealed / name).parent.mkdir(parents=True, exist_ok=True)
    (sealed / name).write_bytes(b"")
    assert verify(sealed) == [Problem(name, "is not in the manifest")]


def test_a_name_that_is_not_utf8_can_be_printed(sealed: Path) -> None:
    with open(os.fsencode(sealed) + b"/n\xff", "wb"):
        pass
    assert verify(sealed) == [Problem("n\\xff", "is not in the manifest")]


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "report.json", "weights"])
def test_a_link_is_found_though_what_it_shows_is_right(sealed: Path, tmp_path: Path, name: str) -> None:
    os.rename(sealed / name, tmp_path / "moved")
    (sealed / name).symlink_to(tmp_path / "moved")
    assert Problem(name, "is a symbolic link") in verify(sealed)


def test_a_link_to_a_folder_is_not_followed(sealed: Path) -> None:
    (sealed / "weights" / "loop").symlink_to(sealed)
    (sealed / "nowhere").symlink_to("/does/not/exist")
    assert paths(verify(sealed)) == ["nowhere", "weights/loop"]


def test_what_is_no_file_is_found_and_not_opened(sealed: Path) -> None:
    os.mkfifo(sealed / "pipe")
    (sealed / "model.onnx").unlink()
    os.mkfifo(sealed / "model.onnx")
    assert set(verify(sealed)) == {
        Problem("pipe", "is no file"),
        Problem("model.onnx", "is no file"),
        Problem("model.onnx", "is missing"),
    }


def test_a_manifest_written_anew_over_a_changed_file_is_found(sealed: Path) -> None:
    """Who changes a file and its entry in the manifest still has the report against him."""
    report = (sealed / "report.json").read_bytes()
    (sealed / "model.onnx").write_bytes(b"other")
    seal(sealed, Report.read(sealed / "report.json"), [])
    (sealed / "report.json").write_bytes(report)
    assert verify(sealed) == [Problem("manifest.json", "is not the manifest that the report was sealed over")]


def test_a_path_that_leaves_the_folder_is_found_and_not_read(sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    path = sealed / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"]["../secret"] = {"size": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(manifest))
    (problem,) = verify(sealed)
    assert problem.path == "manifest.json"
    assert "'../secret' is no plain path inside the bundle" in problem.message


def test_a_folder_that_is_no_bundle_is_the_users_mistake(tmp_path: Path, sealed: Path) -> None:
    (sealed / Manifest.FILE).unlink()
    for folder in (tmp_path / "none", tmp_path / "bundle"):
        with pytest.raises(UserError, match="is no bundle"):
            verify(folder)


def test_progress_is_in_bytes_of_the_bundle(sealed: Path) -> None:
    seen: list[float] = []

    class Step:
        def advance(self, amount: float = 1) -> None:
            seen.append(amount)

    class Watched:
        @contextmanager
        def step(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
            seen.append(-(total or 0))
            yield Step()

    assert verify(sealed, Watched()) == []
    assert seen[0] < 0
    assert sum(seen) == 0
