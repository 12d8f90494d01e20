"""Layer by layer, validation measures what it measures of the whole engine, in the memory of one layer."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.engine.part import GraphPart
from ernie_export.errors import WorkError
from ernie_export.plan import machine
from ernie_export.recipe import Recipe
from ernie_export.reference import layers
from ernie_export.validate import run, way
from ernie_export.validate.report import Report
from ernie_export.validate.sample import Sample
from tests.validate.planting import stored

QUICK = Sample(
    windows=2, window_tokens=96, prompts=2, prompt_tokens=12, new_tokens=6, decode_tokens=10, batch=3
)
BuiltBundle = Callable[[str], Path]
Validated = Callable[..., Report]


@pytest.fixture
def validated(nano: Path) -> Validated:
    def made(folder: Path, recipe: str = "int4", **how: Any) -> Report:
        gates = Recipe.find(recipe).gates
        return run.validate(folder, nano, gates, recipe=recipe, target="cpu", sample=QUICK, **how)

    return made


def same(one: Mapping[str, float], other: Mapping[str, float]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        if name != "memory.peak_bytes":
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("recipe", ["int4", "fp16"])
def test_both_ways_give_the_same_numbers(bundle: BuiltBundle, validated: Validated, recipe: str) -> None:
    whole, by_layer = (validated(bundle(recipe), recipe, way=how) for how in ("whole", "layers"))
    same(whole.metrics, by_layer.metrics)
    assert (by_layer.verdict, by_layer.fault) == (whole.verdict, whole.fault)
    assert by_layer.continuations == whole.continuations
    assert [layer.expert_load for layer in by_layer.layers] == [layer.expert_load for layer in whole.layers]
    assert by_layer.kl_histogram == whole.kl_histogram
    assert [error.name for error in by_layer.operators] == [error.name for error in whole.operators]
    for one, other in zip(whole.drift, by_layer.drift, strict=True):
        fields = one.model_dump()
        assert fields == pytest.approx(other.model_dump(), rel=1e-4, abs=1e-6)
        assert 0 < fields["own_error"] < 3 * fields["added_error"]
    assert not [note for note in whole.notes if "layer by layer" in note]
    assert [note for note in by_layer.notes if note.startswith("The engine was run layer by layer")]


def test_a_fault_is_named_layer_by_layer_too(
    bundle: BuiltBundle, validated: Validated, tmp_path: Path
) -> None:
    folder = shutil.copytree(bundle("int4"), tmp_path / "bundle")
    stored("layers.3.router.weight", lambda rows: rows[::-1])(folder)
    report = validated(folder, way="layers")
    assert report.verdict == "failed"
    assert report.fault is not None and report.fault.startswith("layers.3.router.weight")
    drift = {layer.layer: layer.added_error for layer in report.drift}
    assert drift[3] > 3 * drift[2] and drift[3] > 3 * drift[4]


def test_logits_that_are_no_numbers_end_it(bundle: BuiltBundle, validated: Validated, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle("int4"), tmp_path / "bundle")
    stored("norm.weight", lambda values: values * np.float32("nan"))(folder)
    report = validated(folder, way="layers")
    assert report.verdict == "failed" and report.metrics["logits.non_finite"] > 0
    assert "greedy.agreement" not in report.metrics and "decode.max_difference" not in report.metrics


def test_what_the_reference_computed_serves_another_format(
    bundle: BuiltBundle, validated: Validated, tmp_path: Path
) -> None:
    alone = validated(bundle("int8"), "int8")
    first = validated(bundle("int4"), keep=tmp_path)
    second = validated(bundle("int8"), "int8", keep=tmp_path)
    same(alone.metrics, second.metrics)
    assert [note for note in first.notes if "0 of 6 layers were there already" in note]
    assert [note for note in second.notes if "6 of 6 layers were there already" in note]


def test_little_memory_makes_it_run_layer_by_layer(
    bundle: BuiltBundle, validated: Validated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the whole engine does not fit, it is not opened; what only it could say is not asked of it."""
    opened: list[Any] = []
    monkeypatch.setattr(run, "_open_engine", lambda *args: opened.append(args))
    monkeypatch.setattr(machine, "memory", lambda: (1 << 30, 100 << 20))
    monkeypatch.setattr(layers, "memory", lambda: (1 << 30, 100 << 20))
    report = validated(bundle("int4"))
    assert opened == []
    assert [note for note in report.notes if note.startswith("The engine was run layer by layer: whole it")]
    assert "greedy.agreement" not in report.metrics
    assert any("greedy.agreement does not apply: the whole engine" in note for note in report.notes)
    assert not [gate for gate in report.gates if gate.name.startswith("greedy.")]
    assert all(drift.own_error for drift in report.drift)


def test_only_one_part_is_open_at_a_time(
    bundle: BuiltBundle, validated: Validated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part shows or holds values of more than one layer."""
    init = GraphPart.__init__
    spans: list[set[str]] = []

    def noted(self: GraphPart, folder: Path, probes: list[str], given: list[str], *rest: Any) -> None:
        init(self, folder, probes, given, *rest)
        spans.append({name.split(".")[1] for name in self.inputs if name.startswith("past_key_values.")})

    monkeypatch.setattr(GraphPart, "__init__", noted)
    validated(bundle("int4"), way="layers")
    assert {frozenset(span) for span in spans} == {frozenset(), *(frozenset(str(n)) for n in range(6))}


def test_memory_for_less_than_one_layer_is_one_clear_error(
    bundle: BuiltBundle, validated: Validated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "memory", lambda: (1 << 30, 1 << 20))
    with pytest.raises(WorkError, match=r"layer 0 of the reference takes .* in fp32, and this machine has"):
        validated(bundle("int4"), way="layers")


def test_the_engine_is_let_go_before_the_references_layers_come(
    bundle: BuiltBundle, validated: Validated, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    opener, layer = run._open_engine, layers.LayeredReference.layer
    alive: set[int] = set()

    def noted(*args: Any) -> Any:
        engine = opener(*args)
        opened.append(weakref.ref(engine))
        return engine

    def asked(self: Any, number: int) -> Any:
        alive.update(number for engine in opened if engine() is not None)
        return layer(self, number)

    monkeypatch.setattr(run, "_open_engine", noted)
    monkeypatch.setattr(layers.LayeredReference, "layer", asked)
    validated(bundle("int4"), way="layers")
    assert len(opened) == 1 and alive == set()


@pytest.mark.parametrize(
    ("engine", "free", "how", "opens"),
    [
        (1 << 30, 100 << 30, "whole", True),
        (60 << 30, 100 << 30, "layers", False),  # it is open twice
        (9 << 30, 10 << 30, "layers", False),
        (7 << 30, 8 << 30, "layers", False),
    ],
)
def test_the_free_memory_decides(
    nano: Path, monkeypatch: pytest.MonkeyPatch, engine: int, free: int, how: str, opens: bool
) -> None:
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.reference.layers import LayeredReference
    from ernie_export.validate.sample import Windows

    monkeypatch.setattr(machine, "memory", lambda: (free, free))
    monkeypatch.setattr(way, "sizes", lambda _: type("Sizes", (), {"files": {"a": engine // way.UNKNOWN}}))
    reference = LayeredReference(Checkpoint.open(nano))
    windows = Windows(np.zeros((2, 64), np.int64), "")
    chosen = way.choose(nano, "model.onnx", None, "cpu", reference, windows, 4, None)
    assert (chosen.way, chosen.opens_whole) == (how, opens)
    for forced in ("whole", "layers"):
        assert way.choose(nano, "m", None, "cpu", reference, windows, 4, forced).way == forced
