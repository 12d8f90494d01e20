"""The native operators, built here: the same answers, from the mapped files, and only where they fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ernie_export.engine import native_library
from ernie_export.engine.open import open_engine
from ernie_export.engine.opened_graph import opened_graph
from ernie_export.plan import machine
from ernie_export.reference.transformers_model import Reference
from ernie_export.validate.metrics import compare_logits, logits_metrics

BuiltBundle = Callable[[str], Path]

CPU = native_library.RUNTIME


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
        monkeypatch.setenv(machine.SWITCH, said)
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
    monkeypatch.setattr(machine, "NATIVE", library)
    monkeypatch.setattr(machine, "cpu_flags", lambda: machine.CPU_FLAGS | {"sse"})
    monkeypatch.delenv(machine.SWITCH, raising=False)
    assert native_library.prepare(packed, CPU) == library
    assert native_library.prepare(floats, CPU) is None
    assert native_library.prepare(packed, "tensorrt_rtx") is None, (
        "what an engine is built from is run as it is"
    )
    monkeypatch.setenv(machine.SWITCH, "0")
    assert native_library.prepare(packed, CPU) is None
    monkeypatch.setenv(machine.SWITCH, os.fspath(tmp_path / "other.so"))
    assert native_library.prepare(packed, CPU) is None
    monkeypatch.delenv(machine.SWITCH)
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"sse"})
    assert native_library.prepare(packed, CPU) is None


def test_rows_that_are_no_whole_chunks_are_left_to_the_bodies(bundle: BuiltBundle) -> None:
    graph = opened_graph(bundle("int4") / "model.onnx")
    assert native_library.suits(graph)
    experts = next(node for node in graph.graph.node if node.op_type == native_library.EXPERTS)
    down = next(each for each in graph.graph.initializer if each.name == experts.input[5])
    down.dims[-1] = 96 // 2
    assert not native_library.suits(graph)
    assert not native_library.suits(onnx.ModelProto())


def test_the_cache_is_fp16_and_never_copied(
    bundle: BuiltBundle, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(machine.SWITCH, str(library))
    session = open_engine(bundle("int4")).start(2, 40)
    session.feed([[5, 6, 7], [8]])
    for held in session.cache.buffers.values():
        buffer = held.numpy()
        assert buffer.dtype == np.float16
        assert buffer[0, :, :3].any(axis=(1, 2)).all() and not buffer[0, :, 3:].any()
        assert buffer[1, :, :1].any(axis=(1, 2)).all() and not buffer[1, :, 1:].any()


def test_pieces_need_not_be_cut_for_scores(
    bundle: BuiltBundle, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for said, piece in ((str(library), 512), ("0", 16)):
        monkeypatch.setenv(machine.SWITCH, said)
        engine = open_engine(bundle("int4"))
        engine.info = engine.info.model_copy(update={"num_attention_heads": 2048})
        assert engine.start(1, 2048).piece == piece
