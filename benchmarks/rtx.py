"""What TensorRT for RTX makes of the graph, measured where there is no GPU: engine, time, memory, layers.

    python benchmarks/rtx.py [--only NAME]  →  benchmarks/results/rtx.json, and the table of docs/tensorrt.md

Rows of experts are those of one layer of the 21B, in INT4 where nothing else is said: as our bodies have them,
weights as inputs; as FP8 and FP4 might be had otherwise; and as the usual form has them, INT4 constants dequantized,
all experts run.  All others are whole graphs, traced and lowered, with embedding and head.  `scratch_bytes` is what
the engine needs beside weights and cache: where it is smaller than one unpacked matrix, none is ever written.  Weights
are not read by any build but that of the constants.
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
from ernie_export.quantize.fp8 import NUMBERS  # noqa: E402
from ernie_export.recipe import PartFormat, Parts, Recipe  # noqa: E402
from ernie_export.validate.environment import machine, software  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "rtx.json"
DOC = ROOT / "docs" / "tensorrt.md"
E, H, WIDTH, K, BLOCK = 64, 2560, 1536, 6, 128
FOUR = ["8.0", "8.6", "8.9", "12.0"]
HALF = PartFormat(format="fp16")

#: By format: overload and attributes of our operator, and its weights.
FORMATS = {
    "int4": (
        f"MoEExperts <bits: int = 4, block_size: int = {BLOCK}, ",
        f"uint8[{E},{2 * WIDTH},{H // 2}] gate_up, float16[{E},{2 * WIDTH},{H // BLOCK}] gate_up_scales, "
        f"uint8[{E},{H},{WIDTH // 2}] down, float16[{E},{H},{WIDTH // BLOCK}] down_scales",
    ),
    "fp8": (
        "MoEExperts:fp8 <bits: int = 8, block_size: int = 0, ",
        f"float8e4m3fn[{E},{2 * WIDTH},{H}] gate_up, float[{E},{2 * WIDTH},1] gate_up_scales, "
        f"float8e4m3fn[{E},{H},{WIDTH}] down, float[{E},{H},1] down_scales",
    ),
    "nvfp4": (
        "MoEExperts:nvfp4 <bits: int = 4, block_size: int = 16, ",
        f"uint8[{E},{2 * WIDTH},{H // 2}] gate_up, float8e4m3fn[{E},{2 * WIDTH},{H // 16}] gate_up_scales, "
        f"uint8[{E},{H},{WIDTH // 2}] down, float8e4m3fn[{E},{H},{WIDTH // 16}] down_scales, "
        f"float[{E},1,1] gate_up_matrix_scales, float[{E},1,1] down_matrix_scales",
    ),
}
OURS = f"""
<ir_version: 11, opset_import: ["": 24, "ernie": 1]>
layer (float[1,sequence,{H}] x, int64[1,sequence,{K}] indices, float[1,sequence,{K}] scores, WEIGHTS)
    => (float[1,sequence,{H}] y) {{
    LINES
    y = ernie.OPERATOR num_experts: int = {E}, k: int = {K}> (x, indices, scores, NAMES)
}}
"""
#: The same weights otherwise: FP8 as bytes, found in a table; NVFP4 as TensorRT's own type.
OTHERWISE = {
    "FP8 as bytes": (
        "fp8", "float8e4m3fn", "uint8",
        """
        table = Constant <value_floats: floats = [TABLE]> ()
        begin = Constant <value: tensor = int32 {128}> ()
        MATRIX_bytes = Cast <to: int = 6> (MATRIX)
        MATRIX_places = Add (MATRIX_bytes, begin)
        MATRIX_numbers = Gather <axis: int = 0> (table, MATRIX_places)
        MATRIX_rows = Mul (MATRIX_numbers, MATRIX_scales)
        """.replace("TABLE", ", ".join(map(str, np.nan_to_num(np.resize(np.roll(NUMBERS, 128), 384)).tolist()))),
    ),
    "FP4 of TensorRT's own": (
        "nvfp4", "uint8", "float4e2m1",
        """
        one = Constant <value_float: float = 1.0> ()
        MATRIX_8 = DequantizeLinear (MATRIX_scales, one)
        MATRIX_32 = Mul (MATRIX_8, MATRIX_matrix_scales)
        MATRIX_rows = DequantizeLinear <axis: int = 2, block_size: int = 16> (MATRIX, MATRIX_32)
        """,
    ),
}  # fmt: skip
CONSTANTS = f"""
<ir_version: 10, opset_import: ["": 24, "ernie": 1]>
layer (float16[1,sequence,{H}] x, int64[1,sequence,{K}] indices, float16[1,sequence,{K}] scores)
    => (float16[1,sequence,{H}] y) {{
    gate_up_rows = DequantizeLinear <axis: int = 2, block_size: int = {BLOCK}> (gate_up, gate_up_scales)
    down_rows = DequantizeLinear <axis: int = 2, block_size: int = {BLOCK}> (down, down_scales)
    y = ernie.AllExperts <num_experts: int = {E}, k: int = {K}> (x, indices, scores, gate_up_rows, down_rows)
}}
"""


def experts(phase: str, form: str = "int4", otherwise: str | None = None) -> onnx.ModelProto:
    operator, weights = FORMATS[form]
    names, lines = ", ".join(weight.split()[1] for weight in weights.split(", ")), ""
    if otherwise:
        _, old, new, each = OTHERWISE[otherwise]
        weights = weights.replace(old, new)
        if new == "float4e2m1":  # two a byte, and so counted
            weights = weights.replace(f"{H // 2}] gate_up,", f"{H}] gate_up,")
            weights = weights.replace(f"{WIDTH // 2}] down,", f"{WIDTH}] down,")
        first, *rest = each.strip().splitlines()
        constants = [line for line in (first, *rest) if "MATRIX" not in line]
        steps = [line for line in (first, *rest) if "MATRIX" in line]
        lines = "\n".join(
            [*constants, *(line.replace("MATRIX", name) for name in ("gate_up", "down") for line in steps)]
        )
        operator, names = (
            "MoEExperts:float <bits: int = 0, block_size: int = 0, ",
            "gate_up_rows, , down_rows",
        )
    text = OURS.replace("WEIGHTS", weights).replace("LINES", lines).replace("OPERATOR", operator)
    text = text.replace("NAMES", names)
    return finished(text.replace("sequence", "1") if phase == "decode" else text, phase)


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


def whole(config: ErnieConfig, phase: Any, context: int, parts: Parts) -> onnx.ModelProto:
    traced = trace.trace(config, parts, context)
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
    bits = {
        TensorProto.INT8: 8, TensorProto.INT4: 4, TensorProto.FLOAT16: 16,
        TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT4E2M1: 4,
    }  # fmt: skip
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


def of_phase(
    config: Callable[[], ErnieConfig], phase: Any, context: int, recipe: str = "int4", **other: PartFormat
) -> Callable[[], onnx.ModelProto]:
    parts = Recipe.find(recipe).parts.model_copy(update=other)
    return lambda: whole(config(), phase, context, parts)


ROWS: dict[str, tuple[Callable[[], onnx.ModelProto], list[str]]] = {
    "ernie-nano, decode, four SMs": (of_phase(nano, "decode", 512), FOUR),
    "ernie-nano, prefill, four SMs": (of_phase(nano, "prefill", 512), FOUR),
    "experts of the 21B, decode": (lambda: experts("decode"), ["8.9"]),
    "experts of the 21B, prefill": (lambda: experts("prefill"), ["8.9"]),
    "experts as INT4 constants, decode": (lambda: constants("decode"), ["8.9"]),
    "experts in FP8, decode": (lambda: experts("decode", "fp8"), ["8.9"]),
    "experts in FP8, prefill": (lambda: experts("prefill", "fp8"), ["8.9"]),
    "experts in FP8 as bytes, decode": (lambda: experts("decode", "fp8", "FP8 as bytes"), ["8.9"]),
    "experts in FP8 as bytes, prefill": (lambda: experts("prefill", "fp8", "FP8 as bytes"), ["8.9"]),
    "experts in NVFP4, decode": (lambda: experts("decode", "nvfp4"), ["12.0"]),
    "experts in NVFP4, prefill": (lambda: experts("prefill", "nvfp4"), ["12.0"]),
    "experts in FP4 of TensorRT's own, decode": (
        lambda: experts("decode", "nvfp4", "FP4 of TensorRT's own"),
        ["12.0"],
    ),
    "dense layer of the 21B, decode": (of_phase(lambda: of_21b(1), "decode", 4096), ["8.9"]),
    "MoE layer of the 21B, decode": (of_phase(lambda: of_21b(1, 0), "decode", 4096), ["8.9"]),
    "MoE layer of the 21B, prefill": (of_phase(lambda: of_21b(1, 0), "prefill", 4096), ["8.9"]),
    "four layers of the 21B, decode": (of_phase(lambda: of_21b(4), "decode", 4096), ["8.9"]),
    "four layers of the 21B, prefill": (of_phase(lambda: of_21b(4), "prefill", 4096), ["8.9"]),
    "four layers of the 21B in FP8, decode": (of_phase(lambda: of_21b(4), "decode", 4096, "fp8"), ["8.9"]),
    "four layers of the 21B in FP8, prefill": (of_phase(lambda: of_21b(4), "prefill", 4096, "fp8"), ["8.9"]),
    "four layers of the 21B in FP8 with an fp16 head, decode": (
        of_phase(lambda: of_21b(4), "decode", 4096, "fp8", head=HALF, embedding=HALF),
        ["8.9"],
    ),
    "four layers of the 21B in NVFP4, decode": (
        of_phase(lambda: of_21b(4), "decode", 4096, "nvfp4"),
        ["12.0"],
    ),
    "four layers of the 21B in NVFP4, prefill": (
        of_phase(lambda: of_21b(4), "prefill", 4096, "nvfp4"),
        ["12.0"],
    ),
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
