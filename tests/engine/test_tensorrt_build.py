"""Engines of TensorRT for RTX, really built here; and what becomes of a builder that refuses, hangs or dies."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from math import prod
from pathlib import Path

import onnx
import pytest
import tensorrt_rtx
from onnx import inliner

from ernie_export.engine import tensorrt_build
from ernie_export.engine.tensorrt_job import REFUSED
from ernie_export.errors import WorkError
from ernie_export.graph import tensorrt_rtx as rtx
from ernie_export.graph import write
from ernie_export.graph.lower import fold_constants, name_apart
from ernie_export.progress import Silent

#: By format: the graph's attributes and types of the weights, and the compute capability that it begins with.
FORMATS = {
    "int4": (
        "bits: int = 4, block_size: int = 128",
        "uint8[16,256,128] gate_up, float16[16,256,2] gate_up_scales, "
        "uint8[16,256,64] down, float16[16,256,1] down_scales",
        "8.9",
    ),
    "fp8": (
        "bits: int = 8, block_size: int = 0",
        "float8e4m3fn[16,256,256] gate_up, float[16,256,1] gate_up_scales, "
        "float8e4m3fn[16,256,128] down, float[16,256,1] down_scales",
        "8.9",
    ),
    "nvfp4": (
        "bits: int = 4, block_size: int = 16",
        "uint8[16,256,128] gate_up, float8e4m3fn[16,256,16] gate_up_scales, "
        "uint8[16,256,64] down, float8e4m3fn[16,256,8] down_scales, "
        "float[16,1,1] gate_up_matrix_scales, float[16,1,1] down_matrix_scales",
        "12.0",
    ),
}
EXPERTS = """
<ir_version: 10, opset_import: ["": 24, "ernie": 1]>
layer (float[batch,1,256] x, int64[batch,1,4] indices, float[batch,1,4] scores, WEIGHTS) => (float[batch,1,256] y) {
    y = ernie.MoEExperts OVERLOAD <num_experts: int = 16, k: int = 4, ATTRIBUTES> (x, indices, scores, NAMES)
}
"""
#: A graph that TensorRT for RTX parses: one input, one node.
SMALL = (
    '<ir_version: 10, opset_import: ["": 24]> g (float[batch,4] x) => (float[batch,4] y) { y = Sigmoid (x) }'
)


def experts(form: str) -> onnx.ModelProto:
    """The experts of a layer in decode, weights as inputs, bytes of them as INT8."""
    attributes, weights, _ = FORMATS[form]
    text = EXPERTS.replace("WEIGHTS", weights).replace("ATTRIBUTES", attributes)
    text = text.replace("NAMES", ", ".join(weight.split()[1] for weight in weights.split(", ")))
    model = onnx.parser.parse_model(text.replace(" OVERLOAD", "" if form == "int4" else f":{form}"))
    model.functions.extend(write.functions(model, rtx.bodies("decode"), rtx.OPSETS))
    model = inliner.inline_local_functions(model)
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    model = fold_constants(model)
    name_apart(model)
    return model


def build(model: onnx.ModelProto, folder: Path, **more: object) -> tuple[bytes, str]:
    engine, layers = folder / "e", folder / "l"
    sms = more.pop("sms", ["8.9"])
    with Silent().step("") as step:
        profile, module = tensorrt_build.profile_of(model, 1, 4096), more.pop("module", "tensorrt_rtx")
        tensorrt_build.build(
            model.SerializeToString(), profile, engine, layers, module, step, compute_capabilities=sms, **more
        )  # type: ignore[arg-type]
    return engine.read_bytes(), layers.read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_decode_reads_the_chosen_experts_bytes_in_two_kernels(tmp_path: Path, form: str) -> None:
    sms = [FORMATS[form][2]]
    engine, layers = build(experts(form), tmp_path, sms=sms)
    lines = layers.splitlines()
    readers = [line for line in lines if "Name: gate_up," in line or "Name: down," in line]
    assert len(readers) == 2
    # Gather, unpacking, product and sum are one kernel: it writes no weights, only k rows of the MLP.
    for line in readers:
        assert "LayerType: kgen" in line and "Gath" in line.partition(",")[0]
    written = [
        prod(map(int, sizes.split(",")))
        for line in lines
        for sizes in re.findall(r"Dimensions: \[([0-9,]+)\]", line.partition("Outputs: ")[2])
    ]
    assert max(written) <= 4 * 256
    again, _ = build(experts(form), tmp_path, sms=sms)
    assert hashlib.sha256(engine).digest() == hashlib.sha256(again).digest()


def test_one_engine_for_four_compute_capabilities(tmp_path: Path) -> None:
    one, _ = build(onnx.parser.parse_model(SMALL), tmp_path)
    four, _ = build(onnx.parser.parse_model(SMALL), tmp_path, sms=["7.5", "8.6", "8.9", "12.0"])
    assert len(four) > len(one)


def test_the_profile_is_of_rows_and_of_tokens() -> None:
    text = SMALL.replace("float[batch,4] x", "float[batch,sequence,4] x, float[7] z")
    assert tensorrt_build.profile_of(onnx.parser.parse_model(text), 3, 4096) == {
        "x": ([1, 1, 4], [3, 128, 4], [3, 512, 4])
    }


@pytest.mark.parametrize(
    ("model", "sms", "why"),
    [
        (SMALL, ["8.7"], "tensorrt_rtx 1.7.1.116 builds nothing for compute capability 8.7"),
        (SMALL.replace("Sigmoid (x)", "Nothing (x)"), ["8.9"], "Nothing"),
        (
            SMALL.replace("y = Sigmoid (x)", "y = Attention <q_num_heads: int = 1, kv_num_heads: int = 1> (x, x, x)")
            .replace("[batch,4]", "[batch,2,4]"),
            ["8.9"],
            "tensorrt_rtx builds no engine",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, model: str, sms: list[str], why: str) -> None:
    with pytest.raises(WorkError) as caught:
        build(onnx.parser.parse_model(model), tmp_path, sms=sms)
    assert why in str(caught.value) and "Traceback" not in str(caught.value)
    assert not (tmp_path / "e").exists()


def test_a_dropped_input_ends_the_build(tmp_path: Path) -> None:
    """RTX drops nonpad_kv_seqlen and only warns: an engine of that would attend to what is not there."""
    text = """<ir_version: 11, opset_import: ["": 24]>
    g (float16[1,2,4,8] q, float16[1,2,16,8] k, float16[1,2,16,8] v, int64[1] n) => (float16[1,2,4,8] y) {
        y = Attention (q, k, v, , , , n)
    }"""
    with pytest.raises(WorkError, match=r"(?i)unused input"):
        build(onnx.parser.parse_model(text), tmp_path)


@pytest.mark.parametrize("message", ["Unused Input: n", "falling back to FP32", "Fallback to another"])
def test_warnings_that_end_a_build(message: str) -> None:
    assert REFUSED.search(message)


def test_a_builder_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"it takes longer than 0 seconds"):
        build(onnx.parser.parse_model(SMALL), tmp_path, seconds=0.05)


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="No module named 'tensorrt'"):
        build(onnx.parser.parse_model(SMALL), tmp_path, module="tensorrt")


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.abort()", "tensorrt builds no engine"),
        ("os.kill(os.getpid(), 9)", "out of memory: the system ended"),
    ],
)
def test_a_builder_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, why: str) -> None:
    (tmp_path / "tensorrt.py").write_text(f"import os\n{end}\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(WorkError, match=why):
        build(onnx.parser.parse_model(SMALL), tmp_path, module="tensorrt")


def test_a_builder_dies_with_who_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing builds on when a kit's program is killed."""
    pid = tmp_path / "pid"
    text = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    (tmp_path / "tensorrt.py").write_text(text)
    code = f"""
import os, signal, threading, time
from pathlib import Path
from ernie_export.engine.tensorrt_build import build
from ernie_export.progress import Silent
def end():
    while not Path({str(pid)!r}).exists() or not Path({str(pid)!r}).read_text():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=end).start()
with Silent().step("") as step:
    build(b"", {{}}, Path({str(tmp_path / "e")!r}), Path({str(tmp_path / "l")!r}), "tensorrt", step)
"""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    subprocess.run([sys.executable, "-c", code], check=False)
    state = Path(f"/proc/{pid.read_text()}/stat")
    for _ in range(500):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError("the builder still runs")


def test_what_is_used_of_the_module_is_there() -> None:
    assert tensorrt_rtx.__version__ == "1.7.1.116"
    assert {"SM75", "SM80", "SM86", "SM89", "SM120", "SM121"} <= set(
        tensorrt_rtx.ComputeCapability.__members__
    )
