"""What a bundle asks of its engine where it is installed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from ernie_export.errors import UserError
from ernie_export.reference.transformers_model import Reference
from ernie_export.validate.gates import evaluate
from ernie_export.validate.metrics import compare_logits
from ernie_export.validate.report import Report
from ernie_export.validate.segments import Want
from ernie_export.validate.selfcheck import TIE, Answer, Bound, SelfCheck
from ernie_export.validate.selfcheck_gatherer import Gatherer
from tests.conftest import BuiltBundle

Array = np.ndarray[Any, Any]


def gathered(logits: Array) -> SelfCheck:
    """Of the reference's logits [1,S,V], with no experts."""
    gatherer = Gatherer(np.zeros(logits.shape[:2], np.int64))
    want = gatherer.watching(Want(None, {}, {}, lambda window: logits[window]))
    assert want.logits
    want.logits(0)
    return gatherer.made({}, [compare_logits(logits[0], logits[0], np.zeros(logits.shape[1], np.int64))], {})


def test_it_is_what_transformers_says(bundle: BuiltBundle, nano: Path) -> None:
    check = SelfCheck.read(bundle("int4"))
    assert check.tokens.shape == (4, 64) and check.about.experts_per_token == 4
    output = Reference.open(nano).run(check.tokens.astype(np.int64))
    wanted = np.take_along_axis(output.logits, check.top, -1)
    assert np.array_equal(check.top[..., 0], output.logits.argmax(-1))
    assert np.abs(wanted - check.top_logits).max() < 1e-3
    assert np.abs(output.logits[..., check.spread] - check.spread_logits).max() < 1e-3
    for at, layer in enumerate(check.layers.tolist()):
        chosen = np.sort(check.experts[at, ..., :4], -1)
        assert (chosen == np.sort(output.indices[layer], -1)).all(-1).mean() > 0.999
        near = np.take_along_axis(output.choice[layer], check.experts[at].astype(np.int64), -1)
        assert np.abs(near - check.choice[at]).max() < 1e-5
        assert (np.diff(check.choice[at, ..., :4]) <= 0).all() and (
            np.diff(check.choice[at, ..., 4:]) <= 0
        ).all()


def test_its_bounds_are_the_gates_or_looser(bundle: BuiltBundle) -> None:
    for recipe in ("int4", "int8"):
        bounds = SelfCheck.read(bundle(recipe)).about.bounds
        gates = {gate.name: gate for gate in Report.read(bundle(recipe) / Report.FILE).gates}
        assert {"logits.kl_mean", "logits.same_top1", "routing.agreement"} <= gates.keys() & bounds.keys()
        for name in gates.keys() & bounds.keys():
            low, high = gates[name].min, gates[name].max
            assert low is None or (bounds[name].min or 0) <= low
            assert high is None or (bounds[name].max or 0) >= high


def test_the_reference_itself_passes(bundle: BuiltBundle, nano: Path) -> None:
    check = SelfCheck.read(bundle("int4"))
    output = Reference.open(nano).run(check.tokens.astype(np.int64))
    answers = [
        Answer(output.logits[row], {layer: output.indices[layer][row] for layer in check.layers.tolist()})
        for row in range(len(check.tokens))
    ]
    metrics = check.metrics(answers)
    assert metrics["logits.kl_mean"] < 1e-8 and metrics["logits.max_difference"] < 1e-3
    assert metrics["routing.agreement"] == 1 and metrics["routing.largest_changed_gap"] == 0
    assert all(result.passed for result in evaluate(metrics, check.about.bounds))


def test_a_tie_of_experts_is_no_false_alarm(bundle: BuiltBundle) -> None:
    check = SelfCheck.read(bundle("int4"))
    chosen = {
        layer: check.experts[at, :, :, :4].astype(np.int64) for at, layer in enumerate(check.layers.tolist())
    }
    layer = int(check.layers[0])

    def swapped(apart: float) -> dict[str, float]:
        """The last of the chosen, and the first that was not, that far apart; the engine took the other."""
        choice = check.choice.copy()
        choice[0, ..., 4] = choice[0, ..., 3] - np.float32(apart)
        near = replace(check, choice=choice)
        taken = chosen[layer].copy()
        taken[..., 3] = check.experts[0, ..., 4]
        answers = [
            Answer(
                np.zeros((check.tokens.shape[1], check.about.vocab_size)),
                {each: (taken if each == layer else chosen[each])[row] for each in chosen},
            )
            for row in range(len(check.tokens))
        ]
        return near.metrics(answers)

    assert swapped(TIE / 4)["routing.agreement"] == 1
    assert swapped(TIE / 4)["routing.largest_changed_gap"] == 0
    far = swapped(0.25)
    assert far["routing.agreement"] == pytest.approx(1 - 1 / len(check.layers))
    assert far["routing.largest_changed_gap"] == pytest.approx(0.25, rel=1e-3)


@given(
    st.integers(2, 300).flatmap(
        lambda size: st.tuples(st.just(size), st.integers(0, 2**32 - 1), st.floats(0, 10), st.floats(0.1, 30))
    )
)
@settings(max_examples=40, deadline=None)
def test_the_divergence_is_at_most_the_whole_one(drawn: tuple[int, int, float, float]) -> None:
    vocabulary, seed, noise, spread = drawn
    random = np.random.default_rng(seed)
    reference = (spread * random.standard_normal((1, 3, vocabulary))).astype(np.float32)
    export = (reference[0] + noise * random.standard_normal((3, vocabulary))).astype(np.float32)
    metrics = gathered(reference).metrics([Answer(export, {})])
    whole = compare_logits(reference[0], export, np.zeros(3, np.int64))
    assert metrics["logits.kl_mean"] <= whole.kl.mean() * (1 + 1e-5) + 1e-5
    assert metrics["logits.same_top1"] == whole.same_top1.mean()
    assert metrics["logits.max_difference"] <= whole.difference.max() * (1 + 1e-5) + 1e-5
    if vocabulary <= 64:
        assert metrics["logits.kl_mean"] == pytest.approx(whole.kl.mean(), rel=1e-4, abs=1e-5)
    if spread < 3 and noise > 1 and vocabulary > 3:
        assert metrics["logits.kl_mean"] > 0.1 * whole.kl.mean()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_fails(bad: float) -> None:
    reference = np.random.default_rng(1).standard_normal((1, 3, 100)).astype(np.float32)
    export = reference[0].copy()
    export[1, 7] = bad
    metrics = gathered(reference).metrics([Answer(export, {})])
    assert metrics["logits.non_finite"] == 1 and np.isnan(metrics["logits.kl_mean"])
    bounds = {name: Bound(max=1e9) for name in ("logits.kl_mean", "logits.max_difference")}
    assert not any(result.passed for result in evaluate(metrics, bounds))


def test_the_same_content_gives_the_same_bytes(bundle: BuiltBundle, tmp_path: Path) -> None:
    there = bundle("int4") / SelfCheck.FILE
    SelfCheck.read(bundle("int4")).write(tmp_path / SelfCheck.FILE)
    assert (tmp_path / SelfCheck.FILE).read_bytes() == there.read_bytes()


def about(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """With other metadata."""
    size = struct.unpack("<Q", data[:8])[0]
    said = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["selfcheck"])
    change(said)
    return save(load(data), {"selfcheck": json.dumps(said)})


def arrays(data: bytes, **changed: Callable[[Array], Array]) -> bytes:
    held = load(data)
    size = struct.unpack("<Q", data[:8])[0]
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    return save({name: changed.get(name, lambda same: same)(array) for name, array in held.items()}, metadata)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-1],
    "empty": lambda data: b"",
    "no metadata": lambda data: save(load(data)),
    "another version": lambda data: about(data, lambda said: said.update(schema_version=2)),
    "a bound that is none": lambda data: about(data, lambda said: said["bounds"].update(x="y")),
    "another vocabulary": lambda data: about(data, lambda said: said.update(vocab_size=7)),
    "fewer experts": lambda data: about(data, lambda said: said.update(num_experts=2)),
    "more experts a token": lambda data: about(data, lambda said: said.update(experts_per_token=99)),
    "no prompts": lambda data: arrays(data, tokens=lambda tokens: tokens[:0]),
    "tokens below zero": lambda data: arrays(data, tokens=lambda tokens: tokens - 9999),
    "tokens as floats": lambda data: arrays(data, tokens=lambda tokens: tokens.astype(np.float32)),
    "tokens in one row": lambda data: arrays(data, tokens=lambda tokens: tokens[0]),
    "fewer positions": lambda data: arrays(data, rest=lambda rest: rest[:, 1:]),
    "fewer likeliest": lambda data: arrays(data, top=lambda top: top[..., 1:]),
    "experts in one row": lambda data: arrays(data, experts=lambda experts: experts[0]),
    "a layer more": lambda data: arrays(data, layers=lambda layers: np.append(layers, layers[-1:])),
    "logits as integers": lambda data: arrays(data, top_logits=lambda logits: logits.astype(np.int32)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one(bundle: BuiltBundle, tmp_path: Path, kind: str) -> None:
    path = tmp_path / SelfCheck.FILE
    path.write_bytes(DAMAGE[kind]((bundle("int4") / SelfCheck.FILE).read_bytes()))
    with pytest.raises(UserError, match="damaged"):
        SelfCheck.read(tmp_path)


def test_none_and_a_huge_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody can tell whether its engine is right"):
        SelfCheck.read(tmp_path)
    with (tmp_path / SelfCheck.FILE).open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(UserError, match="is over 64 MB"):
        SelfCheck.read(tmp_path)


def test_another_engine_is_no_answer(bundle: BuiltBundle) -> None:
    check = SelfCheck.read(bundle("int4"))
    right = np.zeros((check.tokens.shape[1], check.about.vocab_size), np.float32)
    with pytest.raises(UserError, match="are not of the shape"):
        check.metrics([Answer(right[:, 1:], {})] * 4)
    with pytest.raises(UserError, match="shows no such experts in layer"):
        check.metrics([Answer(right, {0: np.zeros((64, 4), np.int64)})] * 4)
    assert "routing.agreement" not in check.metrics([Answer(right, {})] * 4)
