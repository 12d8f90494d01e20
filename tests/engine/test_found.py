"""The probe, against a driver's library that is compiled here and says what each test wants."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import onnxruntime
import pytest

from ernie_export.engine import found
from ernie_export.engine.found import Gpu
from tests.doubles import driver


@pytest.fixture
def library(tmp_path: Path):
    def compiled(version: int = 13020, no_gpu: int = 0, source: str = driver.DRIVER) -> str:
        folder = (
            tmp_path / f"{version}.{no_gpu}.{len(source)}"
        )  # the loader knows what it has loaded by its path
        return str(driver.compiled(folder, source, version, no_gpu))

    return compiled


def test_a_gpu(library) -> None:
    assert found.driver(library()) == ("13.2", Gpu("Orin", "8.7", 65893580800, True))


def test_the_free_memory_of_a_gpu(library, tmp_path: Path) -> None:
    assert found.free_on_gpu(library()) == 60_000_000_000
    assert found.free_on_gpu(library(12060, 100)) is None
    assert found.free_on_gpu(str(tmp_path / "libcuda.so.1")) is None
    failing = driver.DRIVER.replace("return current == 0;", "return 2;")
    assert found.free_on_gpu(library(source=failing)) is None


def test_a_driver_that_finds_no_gpu(library) -> None:
    assert found.driver(library(12060, 100)) == ("12.6", None)


def test_no_driver_or_something_else_under_its_name(library, tmp_path: Path) -> None:
    assert found.driver(str(tmp_path / "libcuda.so.1")) == (None, None)
    assert found.driver(library(source="int other(void) { return 0; }")) == (None, None)
    failing = driver.DRIVER.replace("*version = VERSION; return 0;", "return 3;")
    assert found.driver(library(source=failing)) == (None, None)


def test_the_version_of_a_module() -> None:
    assert found.version_of("onnxruntime") == (onnxruntime.__version__, "")
    assert found.version_of("no_such_runtime") == (None, "it is not installed")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "raise OSError('libnvinfer.so.10: cannot open shared object file')",
            "libnvinfer.so.10: cannot open",
        ),
        ("raise RuntimeError", "RuntimeError"),
        ("", "what is installed under its name is not whole"),
        ("import something_that_is_not_there", "it needs something_that_is_not_there"),
    ],
)
def test_a_module_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str
) -> None:
    (tmp_path / "broken_runtime.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    version, why = found.version_of("broken_runtime")
    assert version is None and why.startswith(problem)
    sys.modules.pop("broken_runtime", None)


def test_the_name_of_a_board(tmp_path: Path) -> None:
    assert found.board(tmp_path) == ""
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert found.board(tmp_path) == "NVIDIA Jetson AGX Orin Developer Kit"


def test_this_machine() -> None:
    here = found.find("onnxruntime")
    assert (here.architecture, here.version) == (platform.machine(), onnxruntime.__version__)
