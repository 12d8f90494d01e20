"""A bundle for TensorRT, its engines built by the double; and how the double takes TensorRT's place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest

from ernie_export.digest import sha256_of
from ernie_export.engine import found, tensorrt_build, weight_map
from ernie_export.engine.found import Found, Gpu
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.requires import Binary
from ernie_export.engine.tensorrt import PHASES, engine_path
from ernie_export.graph.lower import Lowered, lower
from ernie_export.graph.weights import read_layout
from ernie_export.pipeline import GRAPH
from ernie_export.progress import Silent
from tests.doubles import prepare

VERSION = "10.16.0.72"
ORIN = Found("aarch64", VERSION, "", "13.2", Gpu("Orin", "8.7", 65893580800, True), "NVIDIA Jetson AGX Orin")
BATCH, CONTEXT = 2, 512


def environment(graphs: Path) -> dict[str, str]:
    """With which a Python finds the doubles."""
    return {
        "PYTHONPATH": os.pathsep.join([str(prepare.SITE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TENSORRT_DOUBLE": str(graphs),
        "TENSORRT_DOUBLE_SITE": str(Path(onnxruntime.__file__).parents[1]),
    }


def take_its_place(monkeypatch: pytest.MonkeyPatch, graphs: Path, here: Found = ORIN) -> None:
    for name, value in environment(graphs).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(prepare.SITE))
    real = found.find
    monkeypatch.setattr(found, "find", lambda module: here if module == "tensorrt" else real(module))


def plugins(folder: Path) -> Path:
    """What the double takes for a library of plugins."""
    path = folder / "plugins" / "libernie_plugins.so"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x7fELF, of the tests")
    return path


def built(bundle: Path, folder: Path, graphs: Path) -> Path:
    """The bundle with engines for TensorRT, which the double built in a process of its own."""
    shutil.copytree(bundle, folder)
    (folder / "engines").mkdir()
    library = plugins(folder)
    model = onnx.load(folder / GRAPH, load_external_data=False)
    (folder / weight_map.FILE).write_bytes(weight_map.rendered(read_layout(folder / GRAPH)))
    binaries = {}
    for phase in PHASES:
        form = Lowered(phase, CONTEXT, BATCH if phase == "decode" else 1, plugins=True)
        lowered = lower(model, form)
        graph = lowered.SerializeToString()
        prepare.prepare(graph, phase, graphs)
        path = folder / engine_path(phase)
        with Silent().step("") as step:
            tensorrt_build.build(
                graph, tensorrt_build.profile_of(lowered, form.batch, CONTEXT), path,
                path.with_suffix(".layers.txt"), "tensorrt", step, plugins=library,
                timing_cache=folder / "timing.cache",
            )  # fmt: skip
        binaries[phase] = Binary(path=engine_path(phase), sha256=sha256_of(path))
    info = EngineInfo.read(folder)
    assert info.requires
    requires = info.requires.model_copy(
        update={
            "module": "tensorrt", "versions": [VERSION], "sm": ["8.7"], "cuda": "13.2", "context": CONTEXT,
            "engine": binaries["decode"], "prefill": binaries["prefill"], "batch": BATCH,
            "plugin": Binary(path=library.relative_to(folder).as_posix(), sha256=sha256_of(library)),
        }
    )  # fmt: skip
    more = {"runtime": "tensorrt", "max_context": CONTEXT, "requires": requires}
    (folder / EngineInfo.FILE).write_bytes(info.model_copy(update=more).to_bytes())
    return folder
