"""What TensorRT for RTX makes of the graph, measured where there is no GPU: engine, time, memory, layers.

    python benchmarks/rtx.py [--only NAME]  →  benchmarks/results/rtx.json

`experts` rows are the experts of one layer of the 21B: as our bodies have them, weights as inputs; and as the
usual form has them, INT4 constants dequantized, all experts run.  `model` rows are whole graphs, traced and
lowered.  `scratch_bytes` is what the engine needs beside weights and cache: where it is smaller than one
unpacked matrix, none is ever written.  Weights are not read by any build but that of the constants.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, parser

from ernie_export.checkpoint import embedded, shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.engine import tensorrt_build
from ernie_export.graph import tensorrt_rtx, trace, write
from ernie_export.graph.lower import Lowered, fold_constants, lower, name_apart
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.validate.environment import machine, software

RESULTS = Path(__file__).parent / "results" / "rtx.json"
E, H, WIDTH, K, BLOCK = 64, 2560, 1536, 6, 128
FOUR = ["8.0", "8.6", "8.9", "12.0"]
EXPERTS_BYTES = E * 3 * H * WIDTH // 2 + 2 * E * 3 * H * WIDTH // BLOCK

OURS = f"""
<ir_version: 10, opset_import: ["": 24, "ernie": 1]>
layer (float[1,sequence,{H}] x, int64[1,sequence,{K}] indices, float[1,sequence,{K}] scores,
    uint8[{E},{2 * WIDTH},{H // 2}] gate_up, float16[{E},{2 * WIDTH},{H // BLOCK}] gate_up_scales,
    uint8[{E},{H},{WIDTH // 2}] down, float16[{E},{H},{WIDTH // BLOCK}] down_scales) => (float[1,sequence,{H}] y) {{
    y = ernie.MoEExperts <num_experts: int = {E}, k: int = {K}, bits: int = 4, block_size: int = {BLOCK}>
        (x, indices, scores, gate_up, gate_up_scales, down, down_scales)
}}
"""
CONSTANTS = f"""
<ir_version: 10, opset_import: ["": 24, "ernie": 1]>
layer (float16[1,sequence,{H}] x, int64[1,sequence,{K}] indices, float16[1,sequence,{K}] scores)
    => (float16[1,sequence,{H}] y) {{
    gate_up_rows = DequantizeLinear <axis: int = 2, block_size: int = {BLOCK}> (gate_up, gate_up_scales)
    down_rows = DequantizeLinear <axis: int = 2, block_size: int = {BLOCK}> (down, down_scales)
    y = ernie.AllExperts <num_experts: int = {E}, k: int = {K}> (x, indices, scores, gate_up_rows, down_rows)
}}
"""


def experts(phase: str) -> onnx.ModelProto:
    return finished(OURS.replace("sequence", "1") if phase == "decode" else OURS, phase)


def constants(phase: str) -> onnx.ModelProto:
    """The form that most exporters write: INT4 in the engine, and every expert on every token."""
    model = finished(CONSTANTS.replace("sequence", "1") if phase == "decode" else CONSTANTS, "prefill")
    random = np.random.default_rng(0)
    for name, shape in (("gate_up", (E, 2 * WIDTH, H)), ("down", (E, H, WIDTH))):
        data = random.integers(0, 256, int(np.prod(shape)) // 2, np.uint8)
        packed = TensorProto(name=name, data_type=TensorProto.INT4, dims=shape, raw_data=data.tobytes())
        model.graph.initializer.append(packed)
        scales = (*shape[:2], shape[2] // BLOCK)
        values = random.uniform(0.001, 0.01, scales).astype(np.float16)
        model.graph.initializer.append(
            helper.make_tensor(f"{name}_scales", TensorProto.FLOAT16, scales, values.tobytes(), raw=True)
        )
    return model


def finished(text: str, phase: Any) -> onnx.ModelProto:
    model = parser.parse_model(text)
    model.functions.extend(write.functions(model, tensorrt_rtx.bodies(phase), tensorrt_rtx.OPSETS))
    model = inliner.inline_local_functions(model)
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            value.type.tensor_type.elem_type = TensorProto.INT8
    if "gate_up" in {value.name for value in model.graph.input}:
        model = fold_constants(model)
    name_apart(model)
    return model


def whole(config: ErnieConfig, phase: Any, context: int) -> onnx.ModelProto:
    traced = trace.trace(config, Recipe.find("int4").parts, context)
    proto = write.assemble(traced, write.weight_files(traced), "tensorrt_rtx", 0)
    return lower(proto, Lowered(phase, context))


def of_21b(layers: int) -> ErnieConfig:
    config = ErnieConfig.read(shapes.folder("21b"))
    last = min(config.moe_layer_end_index, layers - 1)
    return config.model_copy(update={"num_hidden_layers": layers, "moe_layer_end_index": last})


def measured(model: onnx.ModelProto, sms: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Silent().step("") as step:
        engine, layers = Path(folder) / "engine", Path(folder) / "layers"
        profile = tensorrt_build.profile_of(model, 1, 4096)
        result = tensorrt_build.build(
            model.SerializeToString(), profile, engine, layers, "tensorrt_rtx", step, compute_capabilities=sms
        )
        lines = layers.read_text().splitlines()
        kinds = Counter(re.findall(r"LayerType: (\w+)", "\n".join(lines)))
        return {
            "nodes": len(model.graph.node), "engine_bytes": engine.stat().st_size,
            "seconds": result.seconds, "cpu_seconds": result.cpu_seconds, "peak_bytes": result.peak_bytes,
            "scratch_bytes": result.scratch_bytes, "layers": dict(sorted(kinds.items())),
        }  # fmt: skip


ROWS: dict[str, tuple[Any, list[str]]] = {
    "experts decode, ours": (lambda: experts("decode"), ["8.9"]),
    "experts decode, INT4 constants": (lambda: constants("decode"), ["8.9"]),
    "experts prefill, ours": (lambda: experts("prefill"), ["8.9"]),
    "dense layer of the 21B, decode": (lambda: whole(of_21b(1), "decode", 4096), ["8.9"]),
    "two layers of the 21B, decode": (lambda: whole(of_21b(2), "decode", 4096), ["8.9"]),
    "four layers of the 21B, decode": (lambda: whole(of_21b(4), "decode", 4096), ["8.9"]),
    "four layers of the 21B, prefill": (lambda: whole(of_21b(4), "prefill", 4096), ["8.9"]),
    "ernie-nano decode, four SMs": (lambda: whole(ErnieConfig.read(embedded.folder()), "decode", 512), FOUR),
    "ernie-nano prefill, four SMs": (
        lambda: whole(ErnieConfig.read(embedded.folder()), "prefill", 512),
        FOUR,
    ),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", action="append", choices=list(ROWS))
    wanted = arguments.parse_args().only or list(ROWS)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    found |= {"experts_weight_bytes": EXPERTS_BYTES, "machine": machine(), "software": software()}
    for name in wanted:
        make, sms = ROWS[name]
        found["rows"][name] = {"compute_capabilities": sms, **measured(make(), sms)}
        print(name, found["rows"][name], flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
