"""The command line in this process, and a bundle whose engine is small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from ernie_export.cli import main
from ernie_export.validate.gates import GateResult
from ernie_export.validate.report import Inputs, Report, Sizes, Source
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
def report() -> Callable[[bool], Report]:
    """A report of one gate, that passed or failed."""

    def report(passed: bool) -> Report:
        value = 0.95 if passed else 0.5
        gate = GateResult("logits.same_top1", value, 0.9, None, passed, f"logits.same_top1 is {value}")
        return Report(
            tool="ernie-export",
            time="2026-11-24T12:00:00+00:00",
            checkpoint=Source(name="tiny", fingerprint="f" * 64, architecture="Ernie4_5_MoeForCausalLM"),
            recipe="int4",
            target="cpu",
            verdict="passed" if passed else "failed",
            gates=[gate],
            metrics={gate.name: value},
            layers=[],
            continuations=[],
            inputs=Inputs(source="random", windows=1, tokens=8, sha256="0" * 64),
            sizes=Sizes(files={}, parts={}),
            timings={},
            software={},
            machine={},
            claims=[],
            notes=[],
        )

    return report


@pytest.fixture
def small_bundle(byte_level: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder with a real tokenizer; the engine that opens for it is the one in numpy."""
    from ernie_export.engine import open as engine_open

    monkeypatch.setattr(engine_open, "open_engine", lambda folder: RecurrentEngine(320, max_context=512))
    return byte_level
