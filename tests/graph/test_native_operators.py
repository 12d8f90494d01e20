"""A registered operator of the domain `ernie` takes over from the function body of the same name.

Shown with a real library (native/operators.cpp) that counts how often its kernels run.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ernie_export.graph import operators, write
from ernie_export.reference.transformers_model import Reference

Exported = Callable[..., Path]
Array = np.ndarray[Any, Any]

ROOT = Path(__file__).parents[2]
#: Where `make system-deps` puts the headers, and where Debian 13's own package does.
HEADERS = [ROOT / "build/onnxruntime-headers/usr/include/onnxruntime", Path("/usr/include/onnxruntime")]
NATIVE = ("MoERouting", "MoEExperts", "QuantizedLinear")


class Library:
    def __init__(self, path: Path):
        self.path = path
        self._runs = ctypes.CDLL(str(path)).ernie_kernel_runs
        self._runs.restype = ctypes.c_int64

    def runs(self) -> Counter[str]:
        """How often each kernel has run in this process."""
        return Counter({name: self._runs(name.encode()) for name in NATIVE})


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    compiler = shutil.which("g++")
    headers = next((folder for folder in HEADERS if (folder / "onnxruntime_cxx_api.h").exists()), None)
    if not compiler or not headers:
        pytest.skip("g++ or ONNX Runtime's C++ headers are missing: run `make system-deps`")
    source, path = (
        Path(__file__).parent / "native/operators.cpp",
        tmp_path_factory.mktemp("native") / "libernie.so",
    )
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-isystem", str(headers)]
    subprocess.run([compiler, *flags, str(source), "-o", str(path)], check=True)
    return Library(path)


def logits(folder: Path, ids: Array, library: Library | None = None) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if library:
        options.register_custom_ops_library(str(library.path))
    session = onnxruntime.InferenceSession(folder / write.FILE, options, providers=["CPUExecutionProvider"])
    batch, new = ids.shape
    feed: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones((batch, new), np.int64),
        "position_ids": np.broadcast_to(np.arange(new), (batch, new)).copy(),
    }
    for value in session.get_inputs()[3:]:
        feed[value.name] = np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
    (result,) = session.run(["logits"], feed)
    return np.asarray(result)


def operators_of(folder: Path) -> Counter[tuple[str, str]]:
    """How many nodes of our domain the graph has, by (operator, overload)."""
    nodes = onnx.load(folder / write.FILE, load_external_data=False).graph.node
    return Counter((node.op_type, node.overload) for node in nodes if node.domain == operators.DOMAIN)


@pytest.fixture(scope="module")
def ids() -> Array:
    return np.random.default_rng(1).integers(3, 1536, (2, 12))


@pytest.fixture(scope="module")
def reference(nano: Path, ids: Array) -> Array:
    """transformers' own logits."""
    return Reference.open(nano).run(ids).logits


@pytest.mark.parametrize("bodies", ["portable", "onnxruntime"])
@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4"])
def test_library_takes_over(
    exported: Exported, reference: Array, library: Library, ids: Array, recipe: str, bodies: str
) -> None:
    """Every node of the three operators runs natively, with an overload (float experts) or without one."""
    folder = exported(recipe, bodies)
    exact = reference if recipe == "fp32" else logits(exported(recipe, "portable"), ids)
    nodes = operators_of(folder)
    assert nodes["MoEExperts", operators.FLOAT if recipe == "fp32" else ""] > 0

    before = library.runs()
    got = logits(folder, ids, library)
    ran = library.runs() - before

    want = Counter[str]()
    for (name, _), count in nodes.items():
        want[name] += count if name in NATIVE else 0
    assert ran == +want
    assert np.abs(got - exact).max() < 1e-4


def test_bodies_run_without_the_library(exported: Exported, library: Library, ids: Array) -> None:
    """The same file: its INT4 bodies quantize activations, the library's kernels do not, so the numbers tell."""
    folder = exported("int4", "onnxruntime")
    before = library.runs()
    by_bodies = logits(folder, ids)
    assert library.runs() == before
    by_library = logits(folder, ids, library)
    assert library.runs() != before
    assert np.abs(by_bodies - by_library).max() > 1e-3


def test_no_body_stands_in_for_a_type_that_the_library_lacks(
    exported: Exported, library: Library, ids: Array
) -> None:
    """A library takes an operator over by name, for all its nodes: without a kernel for fp16 experts, none loads."""
    folder = exported("fp16", "portable")
    assert np.isfinite(logits(folder, ids)).all()
    with pytest.raises(Exception, match=r"float16.*MoEExperts"):
        logits(folder, ids, library)
