"""The sets of bodies: checked by ONNX, equal to transformers, equal to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ernie_export.engine.onnxruntime import CACHE_TYPES
from ernie_export.graph import operators, write
from ernie_export.reference.transformers_model import Reference

Exported = Callable[..., Path]


def run(folder: Path, ids: np.ndarray, past: int = 0) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / write.FILE, providers=["CPUExecutionProvider"])
    batch, new = ids.shape
    feed: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones((batch, new), np.int64),
        "position_ids": np.broadcast_to(np.arange(new), (batch, new)).copy(),
    }
    for value in session.get_inputs()[3:]:
        _, heads, _, width = value.shape
        feed[value.name] = np.zeros((batch, heads, past, width), CACHE_TYPES[value.type])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(3, 1536, (2, 40))


@pytest.fixture(scope="module")
def want(nano: Path, ids: np.ndarray) -> np.ndarray:
    return Reference.open(nano).run(ids).logits


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8", "fp8", "nvfp4", "int4"])
def test_portable_passes_the_full_check(exported: Exported, recipe: str) -> None:
    onnx.checker.check_model(exported(recipe, "portable") / write.FILE, full_check=True)


@pytest.mark.parametrize("recipe", ["fp32", "int4"])
def test_onnxruntime_passes_the_check(exported: Exported, recipe: str) -> None:
    onnx.checker.check_model(exported(recipe, "onnxruntime") / write.FILE)


@pytest.mark.parametrize("past", [0, 100])
@pytest.mark.parametrize("bodies", ["portable", "onnxruntime"])
def test_fp32_equals_transformers(
    exported: Exported, ids: np.ndarray, want: np.ndarray, bodies: str, past: int
) -> None:
    got = run(exported("fp32", bodies), ids, past)
    assert np.abs(got["logits"] - want).max() < 1e-4
    assert got["present.3.key"].shape[2] == max(past, ids.shape[1])


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_packed_weights_mean_the_same_in_both_sets(exported: Exported, ids: np.ndarray, recipe: str) -> None:
    """At accuracy level 0 ONNX Runtime's INT4 kernels keep fp32 activations: they must equal the exact body."""
    exact = run(exported(recipe, "portable"), ids)["logits"]
    fused = run(exported(recipe, "onnxruntime", 0), ids)["logits"]
    shipped = run(exported(recipe, "onnxruntime", 4), ids)["logits"]

    def off(got: np.ndarray) -> float:
        return float(np.sqrt(((got - exact) ** 2).mean()) / exact.std())

    # QMoE has no fp32 kernel for 8 bits: it quantizes activations at every level.
    assert off(fused) < (1e-5 if recipe == "int4" else 0.05)
    assert off(shipped) < 0.1


@pytest.mark.parametrize("past", [40, 100])
def test_tensorrt_rtx_equals_transformers(
    exported: Exported, ids: np.ndarray, want: np.ndarray, past: int
) -> None:
    """In fp16 where its body says so; the cache has the length that it is given, and no token moves far."""
    got = run(exported("fp32", "tensorrt_rtx"), ids, past)
    off = np.abs(got["logits"] - want).max(-1)
    # A token whose router saw almost no difference between two experts may take the other.
    assert np.quantile(off, 0.95) < 0.05 and off.max() < 1.0
    assert got["present.3.key"].shape[2] == past


def test_onnxruntime_gpu_equals_transformers(exported: Exported, ids: np.ndarray, want: np.ndarray) -> None:
    """Its attention and cache are fp16."""
    got = run(exported("fp16", "onnxruntime_gpu"), ids, 60)
    assert got["present.3.key"].shape[2] == 60 and got["present.3.key"].dtype == np.float16
    off = np.abs(got["logits"] - want).max(-1)
    assert np.quantile(off, 0.95) < 0.02 and off.max() < 1.0


@pytest.mark.parametrize(("recipe", "most"), [("int4", 2e-3), ("int8", 0.03)])
def test_packed_weights_mean_the_same_on_gpus(
    exported: Exported, ids: np.ndarray, recipe: str, most: float
) -> None:
    """The CPU's QMoE keeps fp16 activations for 4 bits, and rounds them to 8 bits for 8."""
    exact = run(exported(recipe, "portable"), ids)["logits"]
    got = run(exported(recipe, "onnxruntime_gpu"), ids)["logits"]
    assert np.sqrt(((got - exact) ** 2).mean()) / exact.std() < most


def test_every_provider_takes_the_experts_of_onnxruntime_gpu(exported: Exported) -> None:
    """What TensorRT-RTX's importer asks of a QMoE node, and that the scores do not come as the input it drops."""
    proto = onnx.load(exported("int4", "onnxruntime_gpu") / write.FILE, load_external_data=False)
    (body,) = [function for function in proto.functions if function.name == "MoEExperts"]
    (node,) = [node for node in body.node if node.op_type == "QMoE"]
    said = {
        each.name: onnx.helper.get_attribute_value(each) for each in node.attribute if not each.ref_attr_name
    }
    assert said["normalize_routing_weights"] == said["swiglu_fusion"] == 1
    assert said["use_sparse_mixer"] == said["weights_prepacked"] == 0
    assert len(node.input) == 8 and all(node.input)  # with biases, without router_weights


@pytest.mark.parametrize("recipe", ["int8", "fp8", "nvfp4", "int4"])
def test_packed_weights_mean_the_same_to_tensorrt_rtx(
    exported: Exported, ids: np.ndarray, recipe: str
) -> None:
    """One new token is decode, in fp32 but for attention; several are prefill."""
    for new in (ids, ids[:, :1]):
        exact = run(exported(recipe, "portable"), new, 40)["logits"]
        got = run(exported(recipe, "tensorrt_rtx"), new, 40)["logits"]
        assert np.sqrt(((got - exact) ** 2).mean()) / exact.std() < 0.02


def test_float_and_packed_experts_in_one_graph(exported: Exported) -> None:
    """An overload tells the two bodies of MoEExperts apart."""
    proto = onnx.load(exported("fp32", "onnxruntime") / write.FILE, load_external_data=False)
    overloads = {(f.name, f.overload) for f in proto.functions}
    assert ("MoEExperts", operators.FLOAT) in overloads and ("MoEExperts", "") not in overloads


def test_right_padded_batch(exported: Exported, ids: np.ndarray, want: np.ndarray) -> None:
    """Rows shorter than the batch are padded on the right; what stands before the padding is untouched by it."""
    for bodies in ("portable", "onnxruntime"):
        session = onnxruntime.InferenceSession(exported("fp32", bodies) / write.FILE)
        mask = np.ones(ids.shape, np.int64)
        mask[1, 25:] = 0
        feed: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        feed["position_ids"] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
        for value in session.get_inputs()[3:]:
            feed[value.name] = np.zeros((2, value.shape[1], 0, value.shape[3]), np.float32)
        (logits,) = session.run(["logits"], feed)
        assert np.abs(logits[0] - want[0]).max() < 1e-4
        assert np.abs(logits[1, :25] - want[1, :25]).max() < 1e-4
