"""The graph for GPUs, driven on a CPU: the engine's cache is what the graph asks for, a slot for each row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.engine import providers
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.onnxruntime import OnnxRuntimeEngine
from ernie_export.errors import WorkError
from ernie_export.reference.transformers_model import Reference
from tests.graph.conftest import CONTEXT, Exported
from tests.graph.conftest import exported as exported


def info_of(config: ErnieConfig) -> EngineInfo:
    return EngineInfo(
        runtime="onnxruntime-cuda",
        graph="model.onnx",
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_context=CONTEXT,
        moe_layers=config.moe_layers,
        num_experts=config.moe_num_experts,
        experts_per_token=config.moe_k,
    )


@pytest.fixture(scope="module")
def engine(exported: Exported, nano: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(exported("fp16", "onnxruntime_gpu"), info_of(Checkpoint.open(nano).config))


def test_prefill_decode_and_a_batch(engine: OnnxRuntimeEngine, nano: Path) -> None:
    ids = np.random.default_rng(3).integers(3, 1536, (3, 40))
    want = Reference.open(nano).run(ids).logits
    session = engine.start(3, 64)
    rows = ids.tolist()
    steps = [[row[:begin] for row, begin in zip(rows, (38, 20, 5), strict=True)]]
    steps += [[row[begin : begin + 1] for row, begin in zip(rows, (38, 20, 5), strict=True)]]
    steps += [[[], rows[1][21:40], []]]
    at = [0, 0, 0]
    for step in steps:
        fed = session.feed(step, all_logits=True)
        for row, tokens in enumerate(step):
            if tokens:
                off = np.abs(fed.logits[row] - want[row, at[row] : at[row] + len(tokens)])
                assert np.quantile(off.max(-1), 0.9) < 0.05
            at[row] += len(tokens)
    assert session.lengths == [39, 40, 6] == at


def test_the_cache_is_fp16_and_written_in_its_slot(engine: OnnxRuntimeEngine) -> None:
    session = engine.start(3, 16)
    session.feed([[], [5, 6, 7], []])
    for held in session.cache.buffers.values():
        kept = held.numpy()
        assert kept.dtype == np.float16 and kept.shape[0] == 3
        assert np.abs(kept[1, :, :3]).max() > 0
        assert not kept[0].any() and not kept[2].any() and not kept[1, :, 3:].any()


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_no_cpu(exported: Exported, nano: Path) -> None:
    """ONNX Runtime would go on without it, and say so to nobody."""
    folder, info = exported("fp16", "onnxruntime_gpu"), info_of(Checkpoint.open(nano).config)
    with pytest.raises(WorkError, match=r"does not start CUDAExecutionProvider, and would run .* on the CPU"):
        OnnxRuntimeEngine(folder, info, provider=providers.CUDA)


def test_what_a_session_is_opened_with() -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    assert providers.CPU.add_to(options) == [("CPUExecutionProvider", {})]
    first, last = providers.CUDA.add_to(options)
    assert last == ("CPUExecutionProvider", {})
    assert first[0] == "CUDAExecutionProvider" and first[1]["use_tf32"] == "0"


def test_a_provider_that_finds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package is there, and lists no device."""
    import onnxruntime

    package = type("package", (), {"get_library_path": staticmethod(lambda: "library.so")})
    monkeypatch.setitem(__import__("sys").modules, providers.RTX.package, package)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: None)
    with pytest.raises(WorkError, match=r"finds no GPU that it runs on\. It runs on RTX cards"):
        providers.RTX.add_to(onnxruntime.SessionOptions())
