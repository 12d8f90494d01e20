"""NVIDIA's own Python bindings, of every version that is taken: they have the names and parameters that code uses.

What code uses is what the doubles have (tests/doubles/site), since the engine's tests run on them.  The bindings
come without their libraries: empty ones in their place let them be imported, and nothing of them runs.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from plugins import fetch
from tests.doubles.prepare import SITE

DOCS = Path(__file__).parents[2] / "docs" / "tensorrt.md"
#: What TensorRT for RTX alone has, by the lists of `tensorrt_variants`.
RTX_ALONE = {
    "DynamicShapesKernelSpecializationStrategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IExecutionContext.is_stream_capturable",
}
#: The double's own.
OWN = {
    "MAGIC",
    "cuda",
    "onnxruntime",
    "LIMIT",
    "memory",
    "registered",
    "calls",
    "capturing",
    "graphs",
    "put",
    "OK",
}
#: Attributes of the double's objects that are their own.
INSIDE = {
    "IOptimizationProfile": {"shapes"}, "IBuilderConfig": {"profiles", "pools", "features", "cache"},
    "INetworkDefinition": {"graph"}, "ICudaEngine": {"session", "profile", "values", "inputs"},
    "IExecutionContext": {"engine", "addresses", "shapes", "run"}, "ITimingCache": {"data"},
    "Builder": {"logger"}, "OnnxParser": {"network", "errors"}, "Runtime": {"logger"}, "ParserError": {"text"},
}  # fmt: skip
STUBS = """
void *createInferBuilder_INTERNAL, *createInferRefitter_INTERNAL, *createInferRuntime_INTERNAL;
void *createNvOnnxParserRefitter_INTERNAL, *createNvOnnxParser_INTERNAL, *getBuilderPluginRegistry;
void *getNvOnnxParserVersion, *getPluginRegistry, *initLibNvInferPlugins;
"""
#: Prints every name, its parameters where a docstring tells them, and its members.
ASK = """
import importlib, inspect, json, re, sys
module = importlib.import_module(sys.argv[1])
found = {}
def note(name, value):
    text = value.__doc__ if isinstance(value.__doc__, str) else ""
    overloads = [re.findall(r"(\\w+)(?::|,|=|\\)$)", line) for line in re.findall(r"\\w+(\\(.*\\))", text)]
    found[name] = overloads
for name, value in vars(module).items():
    if name.startswith("__"): continue
    note(name, value)
    if inspect.isclass(value):
        for inner in dir(value):
            if not inner.startswith("__"):
                note(f"{name}.{inner}", inspect.getattr_static(value, inner))
print(json.dumps(found))
"""


@cache
def names(package: str) -> dict[str, list[list[str]]]:
    """Of a module that is fetched, or installed."""
    path, module = {
        "10.13": (fetch.folder("tensorrt-bindings-10.13"), "tensorrt_bindings"),
        "10.16": (fetch.folder("tensorrt-bindings-10.16"), "tensorrt_bindings"),
        "11.4": (fetch.folder("tensorrt-bindings-11.4"), "tensorrt_bindings"),
        "cuda": (fetch.folder("cuda-bindings"), "cuda.bindings.runtime"),
        "RTX 1.7": (None, "tensorrt_rtx"),
    }[package]
    more = {}
    if path and module == "tensorrt_bindings":
        more = {"LD_LIBRARY_PATH": str(stubs(path, package.partition(".")[0]))}
    ran = subprocess.run(
        [sys.executable, "-c", ASK, module], capture_output=True, text=True,
        env={"PYTHONPATH": str(path or ""), **more},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def stubs(beside: Path, major: str) -> Path:
    folder = beside / "stubs"
    if not folder.exists():
        compiler = shutil.which("gcc")
        if compiler is None:
            pytest.skip("gcc is not here: run `make system-deps`")
        folder.mkdir()
        (folder / "stub.c").write_text(STUBS)
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            path = folder / f"lib{library}.so.{major}"
            command = [
                compiler,
                "-shared",
                f"-Wl,-soname,{path.name}",
                str(folder / "stub.c"),
                "-o",
                str(path),
            ]
            subprocess.run(command, check=True)
    return folder


def used(double: Path) -> dict[str, list[str] | None]:
    """Names of a double, and the parameters of those that are called."""
    found: dict[str, list[str] | None] = {}
    for node in ast.parse(double.read_text()).body:
        for name in _names(node):
            if not name.startswith("_") and name not in OWN:
                found[name] = _parameters(node)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                for name in _names(inner):
                    if not name.startswith("_") and name not in INSIDE.get(node.name, ()):
                        found[f"{node.name}.{name}"] = _parameters(inner)
    return found


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return []


def _parameters(node: ast.AST) -> list[str] | None:
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return None
    return [each.arg for each in node.args.args if each.arg != "self"]


@pytest.mark.parametrize("version", ["10.13", "10.16", "11.4", "RTX 1.7"])
def test_what_is_used_is_there(version: str) -> None:
    genuine = names(version)
    assert len(genuine) > 500
    for name, parameters in used(SITE / "tensorrt" / "__init__.py").items():
        if not version.startswith("RTX") and {name, name.partition(".")[0]} & RTX_ALONE:
            continue
        assert name in genuine, f"{name} is not in {version}"
        if parameters is not None and genuine[name]:
            taken = [set(overload) for overload in genuine[name]]
            assert any(set(parameters) <= each for each in taken), f"{name} of {version}: {genuine[name]}"


def test_what_is_used_of_cuda_is_there() -> None:
    genuine = names("cuda")
    wanted = used(SITE / "cuda" / "bindings" / "runtime.py")
    assert len(wanted) > 20
    for name, parameters in wanted.items():
        assert name in genuine, f"{name} is not there"
        if parameters is not None and genuine[name]:
            assert any(set(parameters) <= set(overload) for overload in genuine[name]), (
                f"{name}: {genuine[name]}"
            )


def rows() -> list[list[str]]:
    """Of the table of versions in the docs: a name of the bindings, and of each version whether it is there."""
    lines = [line for line in DOCS.read_text().splitlines() if re.match(r"\| `[A-Za-z0-9_.]+` \|", line)]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_versions_is_true() -> None:
    table: list[Any] = rows()
    assert len(table) == 21
    for name, *there in table:
        for version, cell in zip(("10.13", "10.16", "11.4", "RTX 1.7"), there, strict=False):
            assert (name in names(version)) == (cell == "yes"), f"{name} in {version}"


CALLS = """
from cuda.bindings import runtime as cuda
stream, address = 7, 1 << 30
to, back = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
for function, *arguments in (
    ("cudaMalloc", 16), ("cudaMemsetAsync", address, 0, 16, stream), ("cudaFree", address),
    ("cudaMemcpyAsync", address, address, 16, to, stream), ("cudaMemcpyAsync", address, address, 16, back, stream),
    ("cudaStreamCreate",), ("cudaStreamSynchronize", stream), ("cudaStreamBeginCapture", stream, mode),
    ("cudaStreamEndCapture", stream), ("cudaDeviceGetAttribute", cuda.cudaDeviceAttr.cudaDevAttrIntegrated, 0),
    ("cudaHostRegister", address, 16, cuda.cudaHostRegisterMapped | cuda.cudaHostRegisterReadOnly),
    ("cudaHostGetDevicePointer", address, 0), ("cudaHostUnregister", address),
):
    error, *_ = getattr(cuda, function)(*arguments)
    nowhere = cuda.cudaError_t.cudaErrorInsufficientDriver, cuda.cudaError_t.cudaErrorNoDevice
    assert error in nowhere, (function, error)
from ernie_export.engine.cuda import Device
try:
    Device()
except Exception as error:
    print(error)
"""


def test_cuda_python_takes_numbers_for_addresses_and_streams() -> None:
    """It fails for want of a GPU, and not at the arguments."""
    path = os.pathsep.join([str(fetch.folder("cuda-bindings")), str(SITE.parents[2])])
    environment = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"}
    ran = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("CUDA fails at cudaStreamCreate: ")
