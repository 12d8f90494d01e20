"""The native operators, built here: the same answers, from the mapped files, and only where they fit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ernie_export.engine import native_library
from ernie_export.engine.open import open_engine
from ernie_export.engine.opened_graph import opened_graph
from ernie_export.reference.transformers_model import Reference
from ernie_export.validate.metrics import compare_logits, logits_metrics

BuiltBundle = Callable[[str], Path]
ROOT = Path(__file__).parents[2]
HEADERS = [ROOT / "build/onnxruntime-headers/usr/include/onnxruntime", Path("/usr/include/onnxruntime")]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = native_library.CPU_FLAGS - native_library.cpu_flags()
    headers = next((folder for folder in HEADERS if (folder / "onnxruntime_cxx_api.h").exists()), None)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    if not shutil.which("g++") or not headers:
        pytest.skip("g++ or ONNX Runtime's C++ headers are missing: run `make system-deps`")
    flags = (native_library.SOURCES / "flags").read_text().split()
    built = tmp_path_factory.mktemp("native") / "libernie_cpu.so"
    source = native_library.SOURCES / "operators.cpp"
    subprocess.run(["g++", *flags, "-Werror", "-isystem", headers, source, "-o", built], check=True)
    return built


@pytest.mark.parametrize(("recipe", "most"), [("int4", 1.3), ("int4-small", 1.3), ("int8", 3.0)])
def test_its_answers_are_as_good(
    bundle: BuiltBundle, nano: Path, library: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, most: float
) -> None:
    """Prefill, several rows, one token each: as near to transformers as ONNX Runtime's own operators are.

    In INT8 the rounding of the activations is most of the little that is lost.
    """
    built, ids = bundle(recipe), np.random.default_rng(3).integers(3, 1536, 130)
    want = Reference.open(nano).run(ids[None]).logits[0]
    kl = {}
    for said in ("0", str(library)):
        monkeypatch.setenv(native_library.SWITCH, said)
        session = open_engine(built).start(2, 140)
        parts = [session.feed([ids[:99].tolist(), ids[:5].tolist()], all_logits=True).logits[0]]
        for at in range(99, 130):
            parts.append(session.feed([[int(ids[at])], [int(ids[at])]]).logits[0])
        compared = compare_logits(want, np.concatenate(parts), ids)
        kl[said] = logits_metrics([compared])["logits.kl_mean"]
    assert kl[str(library)] != kl["0"]
    assert kl[str(library)] < most * kl["0"] and kl[str(library)] < 0.05


def test_it_is_used_where_it_suits_alone(
    bundle: BuiltBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, floats = (opened_graph(bundle(name) / "model.onnx") for name in ("int4", "fp32"))
    library = tmp_path / "libernie_cpu.so"
    library.touch()
    monkeypatch.setattr(native_library, "BUILT", library)
    monkeypatch.setattr(native_library, "cpu_flags", lambda: native_library.CPU_FLAGS | {"sse"})
    monkeypatch.delenv(native_library.SWITCH, raising=False)
    assert native_library.library_for(packed) == library
    assert native_library.library_for(floats) is None
    monkeypatch.setenv(native_library.SWITCH, "0")
    assert native_library.library_for(packed) is None
    monkeypatch.setenv(native_library.SWITCH, os.fspath(tmp_path / "other.so"))
    assert native_library.library_for(packed) is None
    monkeypatch.delenv(native_library.SWITCH)
    monkeypatch.setattr(native_library, "cpu_flags", lambda: {"sse"})
    assert native_library.library_for(packed) is None


def test_rows_that_are_no_whole_chunks_are_left_to_the_bodies(bundle: BuiltBundle) -> None:
    graph = opened_graph(bundle("int4") / "model.onnx")
    assert native_library.suits(graph)
    experts = next(node for node in graph.graph.node if node.op_type == native_library.EXPERTS)
    down = next(each for each in graph.graph.initializer if each.name == experts.input[5])
    down.dims[-1] = 96 // 2
    assert not native_library.suits(graph)
    assert not native_library.suits(onnx.ModelProto())
