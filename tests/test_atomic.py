from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from ernie_export import atomic


def test_a_file_is_written_and_overwritten(tmp_path: Path) -> None:
    for data in (b"one", b"", b"three"):
        atomic.write(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_what_is_stopped_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    atomic.write(tmp_path / "file", b"old")

    def fail(*_: object) -> NoReturn:
        raise OSError

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, step, fail)
        atomic.write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    atomic.write(tmp_path / "file", b"newer")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
