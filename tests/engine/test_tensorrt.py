"""The engine of TensorRT on its double: the same answers as the bundle's graph, and as the checkpoint's own model."""

from __future__ import annotations

import gc
import hashlib
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from ernie_export.engine import tensorrt_build, weight_map
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.interface import Engine
from ernie_export.engine.open import open_engine, open_graph
from ernie_export.engine.tensorrt import Opened, load_plugins
from ernie_export.errors import UserError, WorkError
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from ernie_export.graph.lower import Lowered, lower
from ernie_export.progress import Silent
from ernie_export.validate.asking import tried
from ernie_export.validate.gates import evaluate
from ernie_export.validate.selfcheck import SelfCheck
from tests.conftest import BuiltBundle
from tests.doubles import making

PROMPT = [5, 99, 731, 18, 440, 1203, 77, 12]


@pytest.fixture(scope="module")
def made(bundle: BuiltBundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with engines, and the folder of the double's graphs."""
    base = tmp_path_factory.mktemp("tensorrt")
    with pytest.MonkeyPatch.context() as patch:
        making.take_its_place(patch, base / "graphs")
        return making.built(bundle("int4"), base / "bundle", base / "graphs"), base / "graphs"


@pytest.fixture
def folder(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    making.take_its_place(monkeypatch, made[1])
    yield made[0]


@pytest.fixture
def cuda(folder: Path) -> ModuleType:
    """With no calls and no graphs of earlier tests."""
    from cuda.bindings import runtime  # type: ignore[import-not-found]

    gc.collect()
    for noted in (runtime.calls, runtime.graphs):
        noted.clear()
    assert not runtime.memory and not runtime.registered
    return runtime


def test_it_answers_as_the_checkpoints_own_model(folder: Path) -> None:
    check = SelfCheck.read(folder)
    seen = tried(check, lambda probes: open_engine(folder, probes))
    bounds = {name: bound for name, bound in check.about.bounds.items() if name in seen.metrics}
    assert {"routing.agreement", "logits.kl_mean", "logits.same_top1"} <= bounds.keys()
    assert [result.message for result in evaluate(seen.metrics, bounds) if not result.passed] == []


def off(one: Any, other: Any) -> float:
    """Logits of two engines that round otherwise: about 0.015, more where a router chose otherwise."""
    assert one.shape == other.shape
    return float(np.sqrt(((one - other) ** 2).mean()) / other.std())


def test_it_does_what_the_graph_does(folder: Path) -> None:
    """Prefill in pieces, a batch of rows unlike in length, idle rows, continuation, and what was forgotten."""
    sessions = [opener(folder).start(2, 400) for opener in (open_engine, open_graph)]
    random = np.random.default_rng(1)
    long = random.integers(3, 1536, 300).tolist()
    seen = []

    def feed(rows: list[list[int]], **more: Any) -> None:
        one, other = (session.feed(rows, **more) for session in sessions)
        for mine, its in zip(one.logits, other.logits, strict=True):
            seen.append(off(mine, its) if mine.size or its.size else 0.0)
        assert sessions[0].lengths == sessions[1].lengths

    feed([PROMPT, long])
    feed([[4], [9]])
    feed([[5], []])
    feed([[6], [7]])
    feed([[], PROMPT], all_logits=True)
    for session in sessions:
        session.truncate(1, 20)
    feed([[8], [3]])
    feed([[8, 9, 10], [3]])
    assert max(seen) < 0.25 and np.median(seen) < 0.03, seen


def test_it_generates_what_the_graph_does(folder: Path) -> None:
    made = [
        generate(opener(folder), [PROMPT, PROMPT[:3]], 4, Sampling(), frozenset())
        for opener in (open_engine, open_graph)
    ]
    for mine, its in zip(*made, strict=True):
        assert mine.token_ids[:3] == its.token_ids[:3]


def test_decode_is_captured_once_and_launched_from_then_on(folder: Path, cuda: ModuleType) -> None:
    session = open_engine(folder).start(1, 64)
    session.feed([PROMPT])
    assert not cuda.graphs
    first = session.feed([[9]])
    assert len(cuda.graphs) == 1 and "cudaGraphLaunch" not in cuda.calls
    launched = cuda.calls["launch"]
    for _ in range(5):
        session.truncate(0, len(PROMPT))
        again = session.feed([[9]])
    assert cuda.calls["cudaGraphLaunch"] == 5 and cuda.calls["launch"] == launched
    assert np.array_equal(first.logits[0], again.logits[0])
    # More logits than there was room for: another buffer, so another graph.
    session.feed([[1] * 20], all_logits=True)
    for _ in range(2):
        session.truncate(0, len(PROMPT))
        again = session.feed([[9]])
        assert np.array_equal(first.logits[0], again.logits[0])
    assert len(cuda.graphs) == 2


def test_a_probe_is_what_the_routers_chose(folder: Path) -> None:
    names = ["layers.1.routing.indices", "layers.3.routing.scores"]
    rows = [PROMPT, PROMPT[::-1]]
    for feeds in (rows, [[7], [8]]):
        shown, wanted = (
            opener(folder, names).start(2, 64).feed(feeds).probes for opener in (open_engine, open_graph)
        )
        for mine, its in zip(shown, wanted, strict=True):
            assert mine[names[0]].shape == (len(feeds[0]), 4) and mine[names[0]].dtype == np.int64
            same = np.sort(mine[names[0]]) == np.sort(its[names[0]])
            assert same.mean() > 0.9
            assert np.abs(mine[names[1]].sum(-1) - 1).max() < 2e-3


def test_weights_are_read_where_they_are_mapped_if_memory_is_shared(
    folder: Path, cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = open_engine(folder).start(1, 16).feed([PROMPT]).logits[0]
    monkeypatch.setenv("CUDA_DOUBLE_INTEGRATED", "1")
    engine = open_engine(folder)
    assert sum(cuda.registered.values()) == sum(
        path.stat().st_size for path in (folder / "weights").iterdir()
    )
    assert np.array_equal(engine.start(1, 16).feed([PROMPT]).logits[0], copied)
    monkeypatch.setattr(cuda, "cudaHostRegister", lambda ptr, size, flags: (cuda.cudaError_t(1),))
    assert np.array_equal(open_engine(folder).start(1, 16).feed([PROMPT]).logits[0], copied)
    del engine
    assert not cuda.registered


def test_memory_goes_back_with_the_session(folder: Path, cuda: ModuleType) -> None:
    engine = open_engine(folder)
    before = len(cuda.memory)
    session = engine.start(2, 64)
    session.feed([PROMPT, [1]])
    assert len(cuda.memory) > before
    del session
    assert len(cuda.memory) == before


FP8 = """
<ir_version: 10, opset_import: ["": 23]>
g (float8e4m3fn[4,8] weight, float[4,1] scales, int64[1,1] input_ids) => (float[4,8] rows, int64[1,1] ids) {
    one = Constant <value_float: float = 1.0> ()
    numbers = DequantizeLinear (weight, one)
    rows = Mul (numbers, scales)
    ids = Identity (input_ids)
}
"""


def test_weights_may_be_of_a_type_that_numpy_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    making.take_its_place(monkeypatch, tmp_path)
    trt: Any = importlib.import_module("tensorrt")
    graph, path = onnx.parser.parse_model(FP8).SerializeToString(), tmp_path / "an.engine"
    name = hashlib.sha256(graph).hexdigest()
    (tmp_path / f"{name}.onnx").write_bytes(graph)
    path.write_bytes(trt.MAGIC + trt.__version__.encode().ljust(16) + f"{name}{{}}".encode())
    with pytest.raises(TypeError):
        trt.nptype(trt.DataType.FP8)
    opened = Opened(trt, trt.Runtime(None), None, path)
    assert opened.weights == {"weight": 4 * 8, "scales": 4 * 4}
    assert opened.dtypes == {"input_ids": np.int64, "rows": np.float32, "ids": np.int64}


def test_what_is_asked_of_the_wrong_engine(folder: Path) -> None:
    with pytest.raises(UserError, match=r"does not show layers.0.output. Ask the bundle's graph"):
        open_engine(folder, ["layers.0.output"])
    with pytest.raises(UserError, match=r"computes every value itself, norm.output cannot be given"):
        open_engine(folder, (), ["norm.output"])
    engine: Engine = open_engine(folder)
    with pytest.raises(UserError, match="3 rows at once were asked for, the engine takes at most 2"):
        engine.start(3, 16)
    with pytest.raises(UserError, match="at most 512"):
        engine.start(1, 513)


def test_too_little_memory_of_the_device(
    folder: Path, cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "LIMIT", 1 << 20)
    with pytest.raises(WorkError, match=r"CUDA fails at cudaMalloc: out of memory"):
        open_engine(folder)


def test_without_cuda_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt  # type: ignore[import-not-found]  # noqa: F401

    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(UserError, match=r"CUDA Python does not load here .* pip install cuda-bindings"):
        open_engine(folder)


def edited(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def without_digests(folder: Path) -> None:
    """What speaks against the engine is found when it is opened, not before."""
    info = EngineInfo.read(folder)
    assert info.requires and info.requires.engine and info.requires.prefill
    from ernie_export.digest import sha256_of

    changed = {
        kind: binary.model_copy(update={"sha256": sha256_of(folder / binary.path)})
        for kind, binary in (("engine", info.requires.engine), ("prefill", info.requires.prefill))
    }
    requires = info.requires.model_copy(update=changed)
    (folder / EngineInfo.FILE).write_bytes(info.model_copy(update={"requires": requires}).to_bytes())


DAMAGE = {
    "a weight of another size": (
        lambda folder: edited(
            folder, weight_map.FILE, '"norm.weight": [', '"norm.weight": ["weights/head.bin", 0, 4], "x": ['
        ),
        "bytes of norm.weight, the bundle .* has 4 bytes of it",
    ),
    "a weight that is not there": (
        lambda folder: edited(folder, weight_map.FILE, '"norm.weight"', '"another"'),
        "bytes of norm.weight, the bundle .* has none of that name",
    ),
    "a weight outside": (
        lambda folder: edited(folder, weight_map.FILE, "weights/rope.bin", "../rope.bin"),
        "rope.cos lies outside the bundle",
    ),
    "a weight behind the end": (
        lambda folder: (folder / "weights/rope.bin").write_bytes(b""),
        "does not lie in weights/rope.bin",
    ),
    "no weight file": (lambda folder: (folder / "weights/rope.bin").unlink(), "No such file"),
    "no map of weights": (lambda folder: (folder / weight_map.FILE).unlink(), "weights.json cannot be used"),
    "a map that is none": (lambda folder: (folder / weight_map.FILE).write_text("[1]"), "it is no table of places"),
    "another model": (
        lambda folder: edited(folder, "engine.json", '"num_layers": 6', '"num_layers": 7'),
        "engine.json says 7 layers, the graph has 6",
    ),
    "an engine that is none": (
        lambda folder: ((folder / "engines/decode.engine").write_bytes(b"x"), without_digests(folder)),
        r"tensorrt 10.16.0.72 refuses .*decode.engine: the engine is damaged, or of another version",
    ),
    "a byte of an engine": (
        lambda folder: (folder / "engines/prefill.engine").write_bytes(b"x"),
        r"The engine for prompts .* is not the one that was built",
    ),
    "plugins that are none": (
        lambda folder: (folder / "plugins/libernie_plugins.so").write_bytes(b"x"),
        r"The plugin library .* is not the one that was built",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage(folder: Path, tmp_path: Path, kind: str) -> None:
    damage, words = DAMAGE[kind]
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    damage(copy)
    with pytest.raises((UserError, WorkError), match=words):
        open_engine(copy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"x" * 100,
            r"tensorrt 10.16.0.72 does not load the plugins .* \(.*(file too short|invalid ELF header)",
        ),
        (b"\x7fELF, no MoEExperts", r"The plugins .* lack MoEExperts: they are another version's"),
    ],
)
def test_plugins_that_an_engine_cannot_call(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    import tensorrt  # type: ignore[import-not-found]

    monkeypatch.setattr(tensorrt.IPluginRegistry, "all_creators", ())
    library = tmp_path / "libernie_plugins.so"
    library.write_bytes(content)
    with pytest.raises(WorkError, match=words):
        load_plugins(tensorrt, library)


@pytest.mark.parametrize("content", [b"damaged", b"10.13.3.9;"], ids=["damaged", "of another version"])
def test_a_timing_cache_that_does_not_fit_is_none(folder: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(content)
    model = lower(onnx.load(folder / "model.onnx", load_external_data=False), Lowered("decode", 512, 2, True))
    with Silent().step("") as step:
        tensorrt_build.build(
            model.SerializeToString(), tensorrt_build.profile_of(model, 2, 512), tmp_path / "e", tmp_path / "l",
            "tensorrt", step, plugins=folder / "plugins/libernie_plugins.so", timing_cache=cache,
        )  # fmt: skip
    assert cache.read_bytes() == b"10.16.0.72;"


def test_times_of_kernels_are_kept_and_layers_inspected(made: tuple[Path, Path]) -> None:
    folder = made[0]
    assert (folder / "timing.cache").read_bytes() == b"10.16.0.72;" * 2
    assert "one of the double's" in (folder / "engines/decode.layers.txt").read_text()
