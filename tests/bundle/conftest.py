"""A small sealed bundle of made-up files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.bundle.write import seal
from ernie_export.validate.gates import evaluate
from ernie_export.validate.report import Claim, Inputs, Report, Sizes, Source


@pytest.fixture
def report() -> Report:
    return Report(
        tool="ernie-export 1",
        time="2026-01-02T03:04:05+00:00",
        checkpoint=Source(name="nano", fingerprint="ab" * 32, architecture="Ernie4_5_MoeForCausalLM"),
        recipe="int4",
        target="cpu",
        verdict="passed",
        gates=evaluate({"logits.non_finite": 0}, {}),
        metrics={"logits.non_finite": 0},
        layers=[],
        continuations=[],
        inputs=Inputs(source="text", windows=1, tokens=2, sha256="cd" * 32),
        sizes=Sizes(files={}, parts={}),
        timings={"windows": 1.5},
        software={"python": "3.11"},
        machine={"cores": 2},
        claims=[Claim(claim="decode", where="ran here")],
        notes=[],
    )


@pytest.fixture
def unsealed(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "weights").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "weights" / "layer-00.bin").write_bytes(bytes(range(200)))
    (folder / "weights" / "manifest.json").write_bytes(b"a file like any other, with this name")
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture
def sealed(unsealed: Path, report: Report) -> Path:
    seal(unsealed, report, [Claim(claim="graph", where="built here")])
    return unsealed
