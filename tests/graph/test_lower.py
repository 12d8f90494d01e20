"""The graph as TensorRT takes it: what it says, and that it still computes what the bundle's graph does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ernie_export.errors import UserError
from ernie_export.graph import weights, write
from ernie_export.graph.lower import Lowered, lower
from ernie_export.graph.operators import SIGNATURES
from tests.doubles import prepare

Exported = Callable[..., Path]
LENGTH, BATCH = 48, 2
CACHES = ("past_key_values.", "present.")


def loaded(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / write.FILE, load_external_data=False)


def mapped(folder: Path, packed: type = np.int8) -> dict[str, np.ndarray]:
    """Every weight as the engine is given it: a view of its file, packed bytes as INT8, or INT32 of four."""
    found = {}
    for file in weights.read_layout(folder / write.FILE):
        data = np.memmap(folder / file.path, np.uint8, "r")
        for stored in file.tensors:
            view = data[stored.offset : stored.offset + stored.nbytes]
            dtype = np.dtype(packed if stored.dtype == np.uint8 else stored.dtype)
            found[stored.name] = view.view(dtype).reshape((*stored.shape[:-1], -1))
    return found


def run(
    model: Any, ids: np.ndarray, caches: dict[str, np.ndarray] | None, **more: Any
) -> dict[str, np.ndarray]:
    """`ids` [B,S] behind what stands in the caches; empty ones of LENGTH where none are given."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    batch, new = ids.shape
    start = more.pop("start", 0)
    feed: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": np.tile(start + np.arange(new), (batch, 1)),
        "attention_mask": np.tile((np.arange(LENGTH) < start + new).astype(np.int64), (batch, 1)),
        **more,
    }
    for value in session.get_inputs():
        if value.name == "kept":
            feed["kept"] = np.arange(new)
        if value.name.startswith(CACHES):
            _, heads, _, width = value.shape
            dtype = np.float16 if value.type == "tensor(float16)" else np.float32
            empty = np.zeros((batch, heads, LENGTH, width), dtype)
            feed[value.name] = caches[value.name.replace(*CACHES)].astype(dtype) if caches else empty
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))


def off(got: np.ndarray, wanted: np.ndarray) -> float:
    """ONNX Runtime multiplies constants otherwise than inputs, and fp16 rounds what differs."""
    return float(np.sqrt(((got - wanted) ** 2).mean()) / wanted.std())


@pytest.mark.parametrize("recipe", ["int4", "fp16"])
def test_it_computes_what_the_bundles_graph_does(exported: Exported, recipe: str) -> None:
    folder = exported(recipe, "tensorrt_rtx")
    model, bound = loaded(folder), mapped(folder)
    ids = np.random.default_rng(3).integers(3, 1536, (BATCH, 24))
    prefill, decode = (lower(model, Lowered(phase, LENGTH, BATCH)) for phase in ("prefill", "decode"))
    lowered, whole = run(prefill, ids, None, **bound), run(folder / write.FILE, ids, None)
    assert off(lowered["logits"], whole["logits"]) < 2e-3
    following = ids[:, :1]
    lowered = run(decode, following, lowered, start=24, **bound)
    whole = run(folder / write.FILE, following, whole, start=24)
    assert off(lowered["logits"], whole["logits"]) < 2e-3
    assert np.abs(lowered["present.1.key"][:, :, 24].astype(np.float32)).max() > 0.01
    assert not lowered["present.1.key"][:, :, 25:].any()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_interface(exported: Exported, phase: Any, batch: int) -> None:
    model = loaded(exported("int4", "tensorrt_rtx"))
    before = model.SerializeToString(deterministic=True)
    lowered = lower(model, Lowered(phase, LENGTH, batch))
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(lowered, full_check=True)
    assert not lowered.functions
    assert all(np.prod(constant.dims) <= LENGTH for constant in lowered.graph.initializer)  # no weights
    names = [node.name for node in lowered.graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert {node.domain for node in lowered.graph.node} == {""}

    def sizes(value: onnx.ValueInfoProto) -> list[int | str]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    inputs = {value.name: value for value in lowered.graph.input}
    rows, new = "batch" if batch > 1 else 1, 1 if phase == "decode" else "sequence"
    assert sizes(inputs["input_ids"]) == [rows, new]
    assert sizes(inputs["attention_mask"]) == [rows, LENGTH]
    assert sizes(inputs["past_key_values.2.key"]) == [rows, 2, LENGTH, 32]
    assert inputs["past_key_values.2.key"].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert inputs["layers.1.experts.gate_up"].type.tensor_type.elem_type == onnx.TensorProto.INT8
    assert {weight.name for weight in model.graph.initializer} <= set(inputs)
    outputs = {value.name: sizes(value) for value in lowered.graph.output}
    assert outputs["logits"] == [rows, 1 if phase == "decode" else "kept", 1536]
    assert outputs["layers.3.routing.indices"] == outputs["layers.3.routing.scores"] == [rows, new, 4]


#: What the ONNX parsers of TensorRT 10.0 and later list, of opset 20.
KNOWN = {
    "Add", "Cast", "Concat", "Div", "Floor", "Gather", "Less", "Mod", "Mul", "ReduceMean", "ReduceSum", "Reshape",
    "Shape", "Sigmoid", "Sqrt", "Sub", "Unsqueeze", "Where",
}  # fmt: skip
PLUGINS = {"MoERouting", "MoEExperts", "QuantizedLinear", "CachedAttention"}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_for_tensorrt_every_operator_of_ours_is_a_plugin(exported: Exported, phase: Any) -> None:
    lowered = lower(loaded(exported("int4", "tensorrt")), Lowered(phase, LENGTH, 1, plugins=True))
    assert {opset.domain: opset.version for opset in lowered.opset_import} == {"": 20, "ernie": 1}
    assert not lowered.functions
    ours = [node for node in lowered.graph.node if node.domain == "ernie"]
    assert {node.op_type for node in ours} == PLUGINS and len(ours) == 43 + 6 + 5 + 5
    for node in ours:
        said = {attribute.name: attribute.s for attribute in node.attribute if attribute.s}
        assert said == {"plugin_namespace": b"ernie", "plugin_version": b"1"}
        assert all(node.input)
        attributes = SIGNATURES[node.op_type][2].replace(":float", "").split()
        assert [each.name for each in node.attribute if each.name not in said] == attributes
    assert {node.op_type for node in lowered.graph.node if not node.domain} <= KNOWN
    for node in lowered.graph.node:  # what opset 20 has of these, is what it was written for
        if not node.domain:
            onnx.defs.get_schema(node.op_type, 20, "")
    inputs = {value.name: value.type.tensor_type for value in lowered.graph.input}
    packed = inputs["layers.1.experts.gate_up"]
    assert packed.elem_type == onnx.TensorProto.INT32
    assert [size.dim_value for size in packed.shape.dim][-1] == 256 // 8
    assert inputs["past_key_values.2.key"].shape.dim[2].dim_param == "cache"
    assert inputs["attention_mask"].shape.dim[1].dim_param == "cache"


def test_plugins_pass_fp16_to_each_other(exported: Exported) -> None:
    lowered = lower(loaded(exported("int4", "tensorrt")), Lowered("decode", LENGTH, 1, plugins=True))
    made = {name: node for node in lowered.graph.node for name in node.output}
    (attention,) = (node for node in lowered.graph.node if "present.3.key" in node.output)
    assert [made[name].op_type for name in attention.input[:3]] == ["QuantizedLinear"] * 3
    (projection,) = (node for node in lowered.graph.node if attention.output[0] in node.input)
    assert projection.op_type == "QuantizedLinear"


@pytest.mark.parametrize("recipe", ["int4", "fp16"])
def test_with_plugins_it_computes_what_the_bundles_graph_does(exported: Exported, recipe: str) -> None:
    folder = exported(recipe, "tensorrt")
    model, bound = loaded(folder), mapped(folder, np.int32)
    ids = np.random.default_rng(3).integers(3, 1536, (1, 24))
    phases: list[Any] = ["prefill", "decode"]
    prefill, decode = (
        onnx.load_model_from_string(
            prepare.runnable(lower(model, Lowered(phase, LENGTH, 1, plugins=True)).SerializeToString(), phase)
        )
        for phase in phases
    )
    lowered, whole = run(prefill, ids, None, **bound), run(folder / write.FILE, ids, None)
    assert off(lowered["logits"], whole["logits"]) < 2e-2
    lowered, whole = (
        run(graph, ids[:, :1], before, start=24, **more)
        for graph, before, more in ((decode, lowered, bound), (folder / write.FILE, whole, {}))
    )
    assert off(lowered["logits"], whole["logits"]) < 2e-2


def test_weights_that_the_plugins_do_not_read(exported: Exported) -> None:
    model = loaded(exported("int4", "tensorrt"))
    node = next(node for node in model.graph.node if node.op_type == "MoEExperts")
    next(attribute for attribute in node.attribute if attribute.name == "bits").i = 2
    with pytest.raises(UserError, match=r"The plugins for TensorRT read no weights of 2 bits"):
        lower(model, Lowered("decode", LENGTH, plugins=True))


def test_decode_gathers_the_chosen_experts_bytes(exported: Exported) -> None:
    """No other node reads an expert: what the next sees are k rows of experts, still packed."""
    lowered = lower(loaded(exported("int4", "tensorrt_rtx")), Lowered("decode", LENGTH))
    experts = {f"{what}{scales}" for what in ("gate_up", "down") for scales in ("", "_scales")}
    readers = [
        node
        for node in lowered.graph.node
        if any(name.partition(".experts.")[2] in experts for name in node.input)
    ]
    assert len(readers) == 4 * 5  # gate_up, down and the scales of each, in five layers of experts
    assert {node.op_type for node in readers} == {"Gather"}
