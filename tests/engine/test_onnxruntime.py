"""The ONNX Runtime engine against transformers: every way to feed it, and that its cache is never copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.engine.info import EngineInfo
from ernie_export.engine.onnxruntime import OnnxRuntimeEngine
from ernie_export.engine.open import open_engine
from ernie_export.errors import UserError, WorkError
from ernie_export.reference.transformers_model import Reference, ReferenceOutput

BuiltBundle = Callable[[str], Path]
LONG = 560
MOE = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def reference(nano: Path) -> Reference:
    return Reference.open(nano)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(7).integers(3, 1536, LONG).tolist()


@pytest.fixture(scope="module")
def want(reference: Reference, ids: list[int]) -> ReferenceOutput:
    return reference.run(np.array([ids]))


@pytest.fixture(scope="module")
def engine(bundle: BuiltBundle) -> OnnxRuntimeEngine:
    probes = [f"layers.{layer}.routing.indices" for layer in MOE]
    opened = open_engine(bundle("fp32"), probes)
    assert isinstance(opened, OnnxRuntimeEngine)
    return opened


def check(got: np.ndarray, probes: dict[str, np.ndarray], want: ReferenceOutput, begin: int) -> None:
    """Logits within 1e-4, and the same experts wherever the scores of the choice differ by more than 1e-6."""
    end = begin + len(got)
    assert np.abs(got - want.logits[0, begin:end]).max() < 1e-4
    for layer in MOE:
        chosen = np.sort(probes[f"layers.{layer}.routing.indices"])
        wanted = np.sort(want.indices[layer][0, begin:end])
        ranked = np.sort(want.choice[layer][0, begin:end])[:, ::-1]
        clear = ranked[:, 3] - ranked[:, 4] > 1e-6
        assert clear.mean() > 0.9
        assert np.array_equal(chosen[clear], wanted[clear])


@pytest.mark.parametrize("prompt", [1, 17, 512])
def test_batch_of_one(engine: OnnxRuntimeEngine, ids: list[int], want: ReferenceOutput, prompt: int) -> None:
    """Prefill, one token over the cache, several tokens over the cache."""
    session = engine.start()
    at = 0
    for step in (prompt, 1, 1, 29):
        fed = session.feed([ids[at : at + step]], all_logits=True)
        check(fed.logits[0], fed.probes[0], want, at)
        at += step
    assert session.lengths == [at]


def test_batch_of_four(engine: OnnxRuntimeEngine, ids: list[int], want: ReferenceOutput) -> None:
    """Prompts of 1, 17, 512 and 80 tokens; then one token each, an idle row, several tokens each."""
    session = engine.start(4)
    at = [0, 0, 0, 0]
    for steps in ((1, 17, 512, 80), (1, 1, 1, 1), (1, 0, 1, 0), (1, 1, 1, 1), (9, 30, 2, 0), (0, 1, 0, 0)):
        fed = session.feed([ids[a : a + s] for a, s in zip(at, steps, strict=True)], all_logits=True)
        for row, step in enumerate(steps):
            assert len(fed.logits[row]) == step
            if step:
                check(fed.logits[row], fed.probes[row], want, at[row])
        at = [a + s for a, s in zip(at, steps, strict=True)]
        assert session.lengths == at


def test_last_logits_only(engine: OnnxRuntimeEngine, ids: list[int]) -> None:
    every = engine.start().feed([ids[:20]], all_logits=True).logits[0]
    last = engine.start().feed([ids[:20]]).logits[0]
    assert last.shape == (1, 1536) and np.array_equal(last[0], every[-1])


@pytest.mark.parametrize("all_logits", [True, False], ids=["all logits", "last"])
def test_a_long_row_goes_in_pieces(
    engine: OnnxRuntimeEngine, ids: list[int], want: ReferenceOutput, all_logits: bool
) -> None:
    """Pieces give the same tokens, logits and probes as the whole; the last piece is shorter."""
    session = engine.start()
    session.piece = 100
    fed = session.feed([ids[:250]], all_logits)
    assert session.lengths == [250]
    if all_logits:
        check(fed.logits[0], fed.probes[0], want, 0)
    else:
        assert fed.logits[0].shape == (1, 1536)
        assert np.abs(fed.logits[0][0] - want.logits[0, 249]).max() < 1e-4
        assert all(len(value) == 250 for value in fed.probes[0].values())


def test_pieces_are_shorter_where_the_cache_is_longer(engine: OnnxRuntimeEngine) -> None:
    info = engine.info.model_copy(update={"num_attention_heads": 2048})
    lavish = copy(engine)
    lavish.info = info
    assert engine.start(1, 2048).piece == 512
    assert lavish.start(1, 2048).piece == 16
    assert lavish.start(1, 1024).piece == 32


def test_logits_are_made_of_the_tokens_asked_for_alone(bundle: BuiltBundle, ids: list[int]) -> None:
    opened = OnnxRuntimeEngine(bundle("int4"), EngineInfo.read(bundle("int4")))
    watched = opened.session = Watched(opened.session)
    session = opened.start()
    session.feed([ids[:40]])
    session.feed([ids[40:60]], all_logits=True)
    assert [shapes[0] for shapes in watched.shapes] == [[1, 1, 1536], [1, 20, 1536]]


def test_truncate_forgets(engine: OnnxRuntimeEngine, ids: list[int], want: ReferenceOutput) -> None:
    session = engine.start()
    session.feed([[*ids[:10], 9, 8, 7]])
    session.truncate(0, 10)
    fed = session.feed([ids[10:30]], all_logits=True)
    check(fed.logits[0], fed.probes[0], want, 10)


@pytest.mark.parametrize("batch", [1, 4])
def test_greedy_equals_transformers(
    bundle: BuiltBundle, nano: Path, reference: Reference, batch: int
) -> None:
    """128 tokens, the same as transformers' own, alone and in a batch."""
    from ernie_export.generate.generator import generate
    from ernie_export.generate.sampling import Sampling
    from ernie_export.generate.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.read(nano)
    texts = ["The function returns", "import os\n", "A list is", "Note that this module"]
    prompts = [tokenizer.encode(text) for text in texts[:batch]]
    made = generate(open_engine(bundle("fp32")), prompts, 128, Sampling(), frozenset())
    for prompt, generation in zip(prompts, made, strict=True):
        assert generation.token_ids == reference.greedy(prompt, 128)


class Watched:
    """A session of the runtime that notes where each run had its cache."""

    def __init__(self, inner: Any):
        self.inner = inner
        self.places: list[list[int]] = []
        self.shapes: list[list[list[int]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run_with_iobinding(self, binding: Any) -> None:
        self.inner.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        self.places.append([value.data_ptr() for value in outputs])
        self.shapes.append([value.shape() for value in outputs])


def test_cache_is_not_copied(bundle: BuiltBundle, ids: list[int]) -> None:
    """Every run reads and writes the cache where it was allocated: one address for past and present."""
    engine = OnnxRuntimeEngine(bundle("int4"), EngineInfo.read(bundle("int4")))
    watched = engine.session = Watched(engine.session)
    session = engine.start(1, max_length=128)
    allocated = [held.data_ptr() for held in session.cache.buffers.values()]
    session.feed([ids[:40]])
    before = session.cache.buffers["0.key"].numpy().copy()
    for token in ids[40:50]:
        session.feed([[token]])
    assert len(watched.places) == 11
    assert all(places[1:] == allocated for places in watched.places)
    after = session.cache.buffers["0.key"].numpy()
    assert np.array_equal(after[:, :, :40], before[:, :, :40])
    assert after[:, :, 40:50].any(axis=(1, 3)).all() and not after[:, :, 50:].any()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[5] * 17], "17 tokens do not fit into a cache of 16"),
        ([[1536]], "token id 1536 is outside"),
        ([[-1]], "-1"),
    ],
)
def test_wrong_feeds_are_refused_and_change_nothing(
    engine: OnnxRuntimeEngine, rows: list[list[int]], said: str
) -> None:
    session = engine.start(1, max_length=16)
    with pytest.raises(UserError, match=said):
        session.feed(rows)
    assert session.lengths == [0]


def test_wrong_openings_are_refused(bundle: BuiltBundle, engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no engine\.json"):
        open_engine(tmp_path)
    with pytest.raises(UserError, match="at most 2048"):
        engine.start(1, max_length=2049)
    with pytest.raises(WorkError, match=r"no value named layers\.9\.output"):
        open_engine(bundle("fp32"), ["layers.9.output"])
    changed = tmp_path / "copy"
    shutil.copytree(bundle("int4"), changed)
    graph = (changed / "model.onnx").read_bytes()
    (changed / "model.onnx").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(WorkError, match=r"it is no ONNX graph"):
        open_engine(changed)
    (changed / "model.onnx").write_bytes(graph)
    weights = changed / "weights" / "layer-003.bin"
    weights.write_bytes(weights.read_bytes()[:-4096])
    with pytest.raises(WorkError, match=r"ernie-export verify"):
        open_engine(changed)
    info = EngineInfo.read(changed).model_copy(update={"runtime": "abacus"})
    (changed / EngineInfo.FILE).write_text(info.model_dump_json())
    with pytest.raises(UserError, match="abacus"):
        open_engine(changed)
    (changed / EngineInfo.FILE).write_text('{"runtime": 3}')
    with pytest.raises(UserError, match=r"engine\.json is damaged"):
        open_engine(changed)
