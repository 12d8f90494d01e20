"""What TensorRT for RTX makes of the graph, measured where there is no GPU: engine, time, memory, layers.

    python benchmarks/rtx.py [--only NAME]  →  benchmarks/results/rtx.json, and the table of docs/tensorrt.md

Rows of experts are those of one layer of the 21B: as our bodies have them, weights as inputs; and as the
usual form has them, INT4 constants dequantized, all experts run.  All others are whole graphs, traced and
lowered, with embedding and head.  `scratch_bytes` is what the engine needs beside weights and cache: where it is
smaller than one unpacked matrix, none is ever written.  Weights are not read by any build but that of the constants.
Each row is built twice; `seconds` are the first time's, its process and all, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, parser

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.doc_table import markdown, with_table  # noqa: E402
from ernie_export.checkpoint import embedded, shapes  # noqa: E402
from ernie_export.checkpoint.config import ErnieConfig  # noqa: E402
from ernie_export.digest import sha256_of  # noqa: E402
from ernie_export.engine import tensorrt_build  # noqa: E402
from ernie_export.graph import tensorrt_rtx, trace, write  # noqa: E402
from ernie_export.graph.lower import Lowered, fold_constants, lower, name_apart  # noqa: E402
from ernie_export.progress import Silent  # noqa: E402
from ernie_export.recipe import Recipe  # noqa: E402
from ernie_export.validate.environment import machine, software  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "rtx.json"
DOC = ROOT / "docs" / "tensorrt.md"
E, H, WIDTH, K, BLOCK = 64, 2560, 1536, 6, 128
FOUR = ["8.0", "8.6", "8.9", "12.0"]

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


def of_21b(layers: int, dense: int = 1) -> ErnieConfig:
    """`dense` layers first; the published model has one."""
    config = ErnieConfig.read(shapes.folder("21b"))
    last = min(config.moe_layer_end_index, layers - 1)
    return config.model_copy(
        update={"num_hidden_layers": layers, "moe_layer_start_index": dense, "moe_layer_end_index": last}
    )


def nano() -> ErnieConfig:
    return ErnieConfig.read(embedded.folder())


def packed_bytes(model: onnx.ModelProto) -> int:
    """Of packed weights and their scales, inputs or constants."""
    bits = {TensorProto.INT8: 8, TensorProto.INT4: 4, TensorProto.FLOAT16: 16}
    values = [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in model.graph.input
    ]
    values += [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in model.graph.initializer]
    return sum(
        bits[dtype] * int(np.prod(sizes)) // 8
        for name, dtype, sizes in values
        if dtype in bits and 0 not in sizes and not name.startswith("past_key_values.")
    )


def measured(make: Callable[[], onnx.ModelProto], sms: list[str]) -> dict[str, Any]:
    begun = time.perf_counter()
    model = make()
    made = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Silent().step("") as step:
        engine, layers = Path(folder) / "engine", Path(folder) / "layers"
        profile, graph = tensorrt_build.profile_of(model, 1, 4096), model.SerializeToString()
        built = []
        for _ in range(2):
            started = time.perf_counter()
            result = tensorrt_build.build(
                graph, profile, engine, layers, "tensorrt_rtx", step, compute_capabilities=sms
            )
            built.append((time.perf_counter() - started, result, sha256_of(engine)))
        (seconds, result, digest), (_, _, again) = built
        kinds = Counter(re.findall(r"LayerType: (\w+)", layers.read_text()))
        return {
            "graph_seconds": round(made - begun, 1), "nodes": len(model.graph.node), "graph_bytes": len(graph),
            "seconds": round(seconds, 1), "cpu_seconds": result.cpu_seconds, "peak_bytes": result.peak_bytes,
            "engine_bytes": engine.stat().st_size, "sha256": digest, "same_twice": digest == again,
            "scratch_bytes": result.scratch_bytes, "packed_bytes": packed_bytes(model),
            "layers": dict(sorted(kinds.items())), "tensorrt_rtx": result.version,
        }  # fmt: skip


def of_phase(config: Callable[[], ErnieConfig], phase: Any, context: int) -> Callable[[], onnx.ModelProto]:
    return lambda: whole(config(), phase, context)


ROWS: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "ernie-nano, decode, four SMs": (of_phase(nano, "decode", 512), FOUR),
    "ernie-nano, prefill, four SMs": (of_phase(nano, "prefill", 512), FOUR),
    "experts of the 21B, decode": (lambda: experts("decode"), ["8.9"]),
    "experts of the 21B, prefill": (lambda: experts("prefill"), ["8.9"]),
    "experts as INT4 constants, decode": (lambda: constants("decode"), ["8.9"]),
    "dense layer of the 21B, decode": (of_phase(lambda: of_21b(1), "decode", 4096), ["8.9"]),
    "MoE layer of the 21B, decode": (of_phase(lambda: of_21b(1, 0), "decode", 4096), ["8.9"]),
    "MoE layer of the 21B, prefill": (of_phase(lambda: of_21b(1, 0), "prefill", 4096), ["8.9"]),
    "four layers of the 21B, decode": (of_phase(lambda: of_21b(4), "decode", 4096), ["8.9"]),
    "four layers of the 21B, prefill": (of_phase(lambda: of_21b(4), "prefill", 4096), ["8.9"]),
    "all 28 layers of the 21B, decode": (of_phase(lambda: of_21b(28), "decode", 4096), ["8.9"]),
    "all 28 layers of the 21B, prefill": (of_phase(lambda: of_21b(28), "prefill", 4096), ["8.9"]),
}


def table(rows: dict[str, Any]) -> str:
    head = (
        "graph",
        "build",
        "peak memory",
        "engine",
        "of its packed weights",
        "scratch memory",
        "twice the same",
    )
    return markdown(
        head,
        (
            (
                name, f"{row['seconds']:.1f} s", f"{row['peak_bytes'] / 1e6:.0f} MB",
                f"{row['engine_bytes'] / 1e6:.1f} MB", f"{row['engine_bytes'] / row['packed_bytes']:.3f}",
                f"{row['scratch_bytes'] / 1e6:.1f} MB", "yes" if row["same_twice"] else "no",
            )
            for name, row in rows.items()
        ),
    )  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--only", action="append", choices=list(ROWS))
    wanted = arguments.parse_args().only or list(ROWS)
    found = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for name in wanted:
        make, sms = ROWS[name]
        found[name] = {"compute_capabilities": sms, **measured(make, sms)}
        print(name, found[name], flush=True)
        rows = {each: found[each] for each in ROWS if each in found}
        document = {"machine": machine(), "software": software(), "rows": rows}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    DOC.write_text(with_table(DOC.read_text("utf-8"), "rtx.py", table(rows)), "utf-8")


if __name__ == "__main__":
    main()
