"""The command line in this process, and a bundle whose engine is small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from ernie_export.cli import main
from tests.generate.conftest import byte_level  # noqa: F401  a fixture
from tests.generate.recurrent_engine import RecurrentEngine


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `ernie-export ARGUMENTS…`."""

    def run(*arguments: str | Path) -> Ran:
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def bundle(byte_level: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder with a real tokenizer; the engine that opens for it is the one in numpy."""
    from ernie_export.engine import open as engine_open

    monkeypatch.setattr(engine_open, "open_engine", lambda folder: RecurrentEngine(320, max_context=512))
    return byte_level
