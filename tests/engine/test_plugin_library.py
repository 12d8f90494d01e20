"""The libraries of TensorRT plugins in the package: the right one is found, and it is whole."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

from ernie_export import doctor
from ernie_export.engine import plugin_library
from ernie_export.engine.plugin_library import find
from ernie_export.errors import UserError


def put(folder: Path, name: str, cuda: str, sm: list[str], data: bytes = b"a library") -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "libernie_plugins.so").write_bytes(data)
    says = {"cuda": cuda, "sm": sm, "tensorrt": "10.14.1", "sha256": hashlib.sha256(data).hexdigest()}
    (place / "library.json").write_text(json.dumps(says))
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, "linux-x86_64-cuda9", "9.2", ["7.0"])
    put(tmp_path, "linux-x86_64-cuda13", "13.2", ["8.0", "9.0"], b"for servers")
    put(tmp_path, "linux-aarch64-cuda13", "13.2", ["8.7", "11.0"], b"for Jetsons")
    return tmp_path


def test_the_newest_for_the_architecture(folder: Path) -> None:
    path, library = find("aarch64", "13.2", "8.7", folder)
    assert path == folder / "linux-aarch64-cuda13" / "libernie_plugins.so"
    assert library.sm == ["8.7", "11.0"] and library.sha256 == hashlib.sha256(b"for Jetsons").hexdigest()
    assert find("x86_64", folder=folder)[1].cuda == "13.2"
    assert find("x86_64", "14.0", "9.0", folder)[1].sm == ["8.0", "9.0"]


REFUSED: list[tuple[Any, str]] = [
    (("riscv64", None, None), "There are no TensorRT plugins for riscv64 here"),
    (("aarch64", "12.6", "8.7"), "compiled with CUDA 13.2, the driver takes 12.6 at most"),
    (("x86_64", "13.0", "7.5"), "for compute capability 8.0 9.0, the GPU has 7.5"),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED)
def test_refuses_what_does_not_suit(
    folder: Path, asked: tuple[str, str | None, str | None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        find(*asked, folder=folder)


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("libernie_plugins.so", b"for serverz", "is damaged"),
        ("libernie_plugins.so", None, "cannot be read .No such file or directory"),
        ("library.json", b"{", "library.json is not what `make plugins` writes"),
        ("library.json", b'{"cuda": "13", "sm": [], "sha256": ""}', "library.json is not what"),
        ("library.json", None, "cannot be read .No such file or directory"),
    ],
)
def test_refuses_what_is_not_whole(folder: Path, file: str, data: bytes | None, message: str) -> None:
    path = folder / "linux-x86_64-cuda13" / file
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        find("x86_64", folder=folder)


def test_doctor_tells_which(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_library, "FOLDER", folder)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(doctor, "driver", lambda: (None, None))
    plugins = doctor.diagnose().plugins
    assert plugins.path == str(folder / "linux-aarch64-cuda13" / "libernie_plugins.so")
    assert plugins.sm == ["8.7", "11.0"] and plugins.cuda == "13.2" and not plugins.problem
    assert plugins.sha256 == hashlib.sha256(b"for Jetsons").hexdigest()
    monkeypatch.setattr(doctor, "driver", lambda: ("12.6", None))
    plugins = doctor.diagnose().plugins
    assert plugins.path is None and "the driver takes 12.6 at most" in plugins.problem


def test_a_wheel_takes_them_along(tmp_path: Path) -> None:
    """git does not know them, and the builder leaves out what git does not know, unless it is told."""
    root = Path(__file__).parents[2]
    project = tmp_path / "project"
    (project / "ernie_export" / "engine").mkdir(parents=True)
    for name in ("pyproject.toml", ".gitignore", "README.md"):
        (project / name).write_text((root / name).read_text())
    (project / "recipes").mkdir()
    (project / "ernie_export" / "__init__.py").write_text('__version__ = "1.0"\n')
    put(project / "ernie_export" / "engine" / "plugins", "linux-x86_64-cuda13", "13.2", ["8.0"])
    (wheel,) = WheelBuilder(str(project)).build(directory=str(tmp_path), versions=["standard"])
    inside = zipfile.ZipFile(wheel).namelist()
    assert "ernie_export/engine/plugins/linux-x86_64-cuda13/libernie_plugins.so" in inside
    assert "ernie_export/engine/plugins/linux-x86_64-cuda13/library.json" in inside
