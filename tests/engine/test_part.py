"""The parts of a bundle's graph, one after the other, are the whole engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ernie_export.engine.open import open_engine
from ernie_export.engine.opened_graph import opened_graph
from ernie_export.engine.part import GraphPart, cut
from ernie_export.errors import WorkError

BuiltBundle = Callable[[str], Path]
LAYERS = 6
STATES = ["embedding.output", *(f"layers.{layer}.output" for layer in range(LAYERS))]
IDS: list[int] = np.random.default_rng(3).integers(3, 1536, 40).tolist()
Feed = list[list[int]]


def through_parts(folder: Path, feeds: list[Feed], batch: int) -> list[list[np.ndarray]]:
    """The logits of every feed and row, from parts that are opened one after the other."""
    values: list[list[np.ndarray]] = []
    for entry, exit in zip([None, *STATES], [*STATES, "logits"], strict=True):
        session = GraphPart(folder, [exit], [entry] if entry else []).start(batch, len(IDS))
        after = []
        for number, rows in enumerate(feeds):
            given = [{entry: value} for value in values[number]] if entry else []
            fed = session.feed(rows, all_logits=True, given=given)
            after.append(fed.logits if exit == "logits" else [probes[exit] for probes in fed.probes])
        values = after
    return values


@pytest.mark.parametrize("recipe", ["fp32", "int4"])
@pytest.mark.parametrize(
    "feeds",
    [
        pytest.param([[IDS]], id="prefill"),
        pytest.param([[IDS[:20]], *([[token]] for token in IDS[20:26]), [IDS[26:]]], id="over a cache"),
        pytest.param([[IDS[:9], IDS[5:18]], [IDS[9:10], IDS[18:19]], [IDS[10:11], IDS[19:20]]], id="a batch"),
    ],
)
def test_parts_are_the_whole_engine(bundle: BuiltBundle, recipe: str, feeds: list[Feed]) -> None:
    batch = len(feeds[0])
    session = open_engine(bundle(recipe)).start(batch, len(IDS))
    got = through_parts(bundle(recipe), feeds, batch)
    for rows, logits in zip(feeds, got, strict=True):
        for want, value in zip(session.feed(rows, all_logits=True).logits, logits, strict=True):
            np.testing.assert_allclose(value, want, atol=1e-5)


def test_rows_of_a_batch_have_lengths_of_their_own(bundle: BuiltBundle) -> None:
    part = GraphPart(bundle("int4"), ["layers.1.output"], ["layers.0.output"])
    states = np.random.default_rng(0).normal(size=(12, 256)).astype(np.float32)

    def run(session: Any, rows: Feed, *places: slice) -> list[np.ndarray]:
        given = [{"layers.0.output": states[place]} for place in places]
        return [probes.get("layers.1.output") for probes in session.feed(rows, given=given).probes]

    together = part.start(2, 12)
    run(together, [IDS[:3], IDS[:7]], slice(0, 3), slice(0, 7))
    assert together.lengths == [3, 7]
    first = run(together, [IDS[3:4], IDS[7:8]], slice(3, 4), slice(7, 8))
    idle = run(together, [IDS[4:6], []], slice(4, 6), slice(0, 0))
    assert together.lengths == [6, 8] and idle[1] is None
    alone = part.start(1, 12)
    run(alone, [IDS[:3]], slice(0, 3))
    (want,) = run(alone, [IDS[3:4]], slice(3, 4))
    np.testing.assert_allclose(first[0], want, atol=1e-5)
    (want,) = run(alone, [IDS[4:6]], slice(4, 6))
    np.testing.assert_allclose(idle[0], want, atol=1e-5)
    alone.truncate(0, 3)
    (again,) = run(alone, [IDS[3:4]], slice(3, 4))
    np.testing.assert_allclose(again, first[0], atol=1e-5)


def test_only_the_last_logits_where_no_more_are_asked_for(bundle: BuiltBundle) -> None:
    part = GraphPart(bundle("int4"), ["logits"], [STATES[-1]])
    states = {STATES[-1]: np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)}
    every = part.start(1, 8).feed([IDS[:5]], all_logits=True, given=[states]).logits[0]
    last = part.start(1, 8).feed([IDS[:5]], given=[states]).logits[0]
    assert every.shape == (5, 1536) and last.shape == (1, 1536)
    np.testing.assert_allclose(last[0], every[-1], atol=1e-5)


def test_a_part_holds_nothing_that_it_does_not_need(bundle: BuiltBundle) -> None:
    graph = onnx.load(bundle("int4") / "model.onnx", load_external_data=False).graph
    model = opened_graph(bundle("int4") / "model.onnx", ["layers.2.output"], ["layers.1.output"])
    cut(model, ["layers.2.output"])
    part = model.graph
    weights = {tensor.name for tensor in part.initializer}
    assert {name for name in weights if not name.startswith("rope.")} == {
        tensor.name for tensor in graph.initializer if tensor.name.startswith("layers.2.")
    }
    assert {value.name for value in part.input} == {
        "given.layers.1.output", "attention_mask", "position_ids",
        "past_key_values.2.key", "past_key_values.2.value",
    }  # fmt: skip
    assert {value.name for value in part.output} == {"layers.2.output", "present.2.key", "present.2.value"}
    assert len(part.node) < len(graph.node) / 3


@pytest.mark.parametrize(("probes", "given"), [(["layers.9.output"], []), (["layers.2.output"], ["nothing"])])
def test_a_value_that_is_not_there_is_one_clear_error(
    bundle: BuiltBundle, probes: list[str], given: list[str]
) -> None:
    with pytest.raises(WorkError, match="has no value named"):
        GraphPart(bundle("int4"), probes, given)
