"""A kit for a server with TensorRT, in a Python with numpy and the doubles of TensorRT, CUDA Python and the driver."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import pytest

from ernie_export.bench import bench
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.digest import sha256_of
from ernie_export.engine import found, plugin_library
from ernie_export.engine.compatibility import memory
from ernie_export.engine.found import Found, Gpu
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.tensorrt import PHASES
from ernie_export.errors import UserError
from ernie_export.kit.tensorrt import graph_path
from ernie_export.plan import machine
from ernie_export.target import Target
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle
from tests.doubles import driver, prepare
from tests.doubles import making as doubles
from tests.kit import making

VERSION = "11.4.0.106"


class Place(NamedTuple):
    kit: Path
    python: Path
    environment: dict[str, str]


def placed(bundle: Path, base: Path, target: str, python: Path, compiler: str = "gcc", **more: str) -> Place:
    """A kit for a target, and a machine that the doubles make one of its kind."""
    purpose = Target.find(target)
    assert purpose.sm and purpose.architecture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            plugin_library, "FOLDER", making.library(base / "plugins", purpose.architecture, purpose.sm)
        )
        for name, value in (("PREFILL", (64,)), ("DECODE", (64,)), ("TOKENS", 4)):
            patch.setattr(bench, name, value)
        kit = making.packed(bundle, base / "kit", target)
    for phase in PHASES:
        prepare.prepare((kit / graph_path(phase)).read_bytes(), phase, base / "graphs")
    jetson = int(target.startswith("jetson"))
    found = driver.compiled(base / "driver", sm=purpose.sm, integrated=jetson, compiler=compiler)
    environment = doubles.environment(base / "graphs") | {
        "PYTHONPATH": str(prepare.SITE),
        "LD_LIBRARY_PATH": str(found.parent),
    }
    return Place(kit, python, environment | more)


@pytest.fixture(scope="module")
def place(bundle: BuiltBundle, tmp_path_factory: pytest.TempPathFactory) -> Place:
    base = tmp_path_factory.mktemp("kit-tensorrt")
    python = making.bare(base / "venv", "numpy")
    return placed(bundle("int4"), base, "h100", python, TENSORRT_DOUBLE_VERSION=VERSION)


@pytest.fixture(scope="module")
def built(place: Place) -> Path:
    ran = making.run(place.python, place.kit, "build", "--context", "512", **place.environment)
    assert ran.returncode == 0, ran.stderr
    assert "the engine, by tensorrt 11.4.0.106: built on target" in ran.stdout
    return place.kit.with_name("kit-built")


def test_what_a_kit_holds(place: Place) -> None:
    manifest, requires = Manifest.read(place.kit), EngineInfo.read(place.kit).requires
    assert not verify(place.kit) and requires and requires.plugin and requires.engine is None
    assert (requires.module, requires.sm, requires.cuda, requires.versions) == (
        "tensorrt",
        ["9.0"],
        "13.0",
        ["11"],
    )
    assert {
        "plugins/libernie_plugins.so", "engines/weights.json", "kit/decode.onnx", "kit/prefill.onnx",
        "kit/decode.profile.json", "kit/prefill.profile.json", "selfcheck.safetensors", "kit.json", "kit.pyz",
    } <= manifest.files.keys()  # fmt: skip
    assert not any(name.startswith("kit/as-it-ships") for name in manifest.files)
    assert json.loads((place.kit / "kit.json").read_bytes())["bandwidth"] == 3350e9


def test_it_is_built_and_asked_and_sealed_on_its_device(built: Path) -> None:
    assert not verify(built)
    manifest, report, requires = (
        Manifest.read(built),
        Report.read(built / Report.FILE),
        EngineInfo.read(built).requires,
    )
    assert requires and requires.engine and requires.prefill and requires.plugin
    assert (requires.versions, requires.sm) == (["11.4.0"], ["9.0"])
    for binary in (requires.engine, requires.prefill, requires.plugin):
        assert sha256_of(built / binary.path) == binary.sha256 == manifest.files[binary.path].sha256
    assert {"built here", "built on target", "ran on target"} <= {claim.where for claim in manifest.claims}
    assert report.verdict == "passed" and report.metrics["routing.agreement"] > 0.85
    assert {gate.name for gate in report.gates} >= {"logits.kl_mean", "logits.same_top1", "routing.agreement"}
    assert report.machine["sm"] == "9.0" and report.machine["gpu"] == "Orin"
    assert report.speed and report.speed.bandwidth == 3350e9 and report.speed.decode
    assert manifest.software["tensorrt"] == VERSION and "onnxruntime" not in manifest.software
    assert report.metrics["memory.peak_bytes"] > 1e6
    assert sorted(path.name for path in (built / "engines").iterdir()) == [
        "decode.engine", "decode.layers.txt", "prefill.engine", "prefill.layers.txt", "weights.json"
    ]  # fmt: skip
    assert os.path.samefile(built / "weights/head.bin", built.with_name("kit") / "weights/head.bin")


def copied(place: Place, folder: Path) -> Path:
    return Path(shutil.copytree(place.kit, folder / "kit"))


def refused(place: Place, kit: Path, words: str, **more: str) -> None:
    ran = making.run(place.python, kit, "build", "--context", "512", **(place.environment | more))
    assert ran.returncode in (1, 2) and words in ran.stderr, ran.stderr
    assert ran.stderr.count("error:") == 1 and "Traceback" not in ran.stderr
    assert not kit.with_name("kit-built").exists()


def test_another_gpu_or_stack(place: Place, tmp_path: Path) -> None:
    kit = copied(place, tmp_path)
    for words, more in (
        ("is for compute capability 9.0, Orin has 8.7", {"sm": "8.7"}),
        ("needs a driver for CUDA 13.0, the one here takes 12.6 at most", {"version": 12060}),
        ("needs a GPU, and the driver finds none", {"no_gpu": 100}),
    ):
        path = driver.compiled(tmp_path / words[:8], **({"sm": "9.0"} | more)).parent  # type: ignore[arg-type]
        refused(place, kit, words, LD_LIBRARY_PATH=str(path))
    refused(place, kit, "needs TensorRT 11, here is 10.16.0.72", TENSORRT_DOUBLE_VERSION="10.16.0.72")
    refused(place, kit, "needs TensorRT 11, which does not load here (it is not installed)", PYTHONPATH="")


def test_cuda_python_is_missing(place: Place, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "tensorrt").mkdir(parents=True)
    (site / "tensorrt" / "__init__.py").write_text(f"__version__ = {VERSION!r}\n")
    refused(
        place, copied(place, tmp_path), "needs CUDA Python, which does not load here", PYTHONPATH=str(site)
    )


def test_too_little_memory_of_the_device_says_what_to_change(place: Place, tmp_path: Path) -> None:
    words = (
        "too little memory for the engine (CUDA fails at cudaMalloc: out of memory). Stop what else runs here"
    )
    refused(place, copied(place, tmp_path), words, CUDA_DOUBLE_MEMORY="1000000")


def test_memory_is_the_gpus_own_where_it_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(module: str, provider: str | None = None) -> EngineInfo:
        return cast(EngineInfo, SimpleNamespace(requires=SimpleNamespace(module=module, provider=provider)))

    def here(shares: bool) -> Found:
        return Found("x86_64", VERSION, "", "13.2", Gpu("a GPU", "9.0", 80 << 30, shares), "")

    monkeypatch.setattr(machine, "memory", lambda: (8 << 30, 4 << 30))
    monkeypatch.setattr(machine, "mapped", lambda: 1 << 30)
    own, system = (80 << 30, 80 << 30), (8 << 30, 3 << 30)
    assert memory(info("tensorrt"), here(False)) == own
    assert memory(info("tensorrt"), here(True)) == system
    assert memory(info("onnxruntime"), here(False)) == system
    assert memory(info("onnxruntime", "CUDAExecutionProvider"), here(False)) == own
    monkeypatch.setattr(found, "free_on_gpu", lambda: 7 << 30)
    assert memory(info("tensorrt"), here(False)) == (80 << 30, 7 << 30)


def test_a_build_that_was_out_of_memory_goes_on(place: Place, tmp_path: Path) -> None:
    kit = copied(place, tmp_path)
    refused(place, kit, "too little memory", CUDA_DOUBLE_MEMORY="1000000")
    ran = making.run(place.python, kit, "build", "--context", "512", **place.environment)
    assert ran.returncode == 0, ran.stderr
    assert "An earlier build was interrupted: engine stand already." in ran.stderr


def test_a_graph_that_tensorrt_refuses(place: Place, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    words = (
        "tensorrt builds no engine of this graph: QuantizedLinear: the double was not prepared for this graph"
    )
    refused(place, copied(place, tmp_path), words, TENSORRT_DOUBLE=str(tmp_path / "none"))


def test_plugins_that_are_missing_are_told_before_the_work(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ernie_export import pipeline
    from ernie_export.recipe import Recipe

    def build(target: str) -> None:
        pipeline.build(nano, Target.find(target), Recipe.find("int4"), tmp_path / "kit")

    monkeypatch.setattr(plugin_library, "FOLDER", tmp_path / "none")
    with pytest.raises(UserError, match=r"no TensorRT plugins for aarch64 here. Run `make plugins` .* wheel"):
        build("jetson-agx-orin-64gb")
    monkeypatch.setattr(plugin_library, "FOLDER", making.library(tmp_path / "plugins", "aarch64", "11.0"))
    with pytest.raises(UserError, match=r"are for compute capability 11.0, the GPU has 8.7"):
        build("jetson-agx-orin-64gb")
    assert not (tmp_path / ".kit.partial").exists()


def test_every_target_that_is_built_on_it_has_a_stack_and_an_architecture() -> None:
    targets = [target for target in Target.all() if target.runtime == "tensorrt" and target.is_kit]
    assert {"jetson-agx-orin-64gb", "jetson-thor-t5000", "jetson-orin-nx-16gb", "h100"} <= {
        t.name for t in targets
    }
    for target in targets:
        assert target.ready_stacks and target.sm and target.architecture


@pytest.mark.slow
def test_build_makes_a_kit_for_a_jetson(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint, with every gate, on a machine that is no Jetson."""
    from ernie_export import pipeline
    from ernie_export.recipe import Recipe

    monkeypatch.setattr(plugin_library, "FOLDER", making.library(tmp_path / "plugins", "aarch64", "8.7"))
    result = pipeline.build(nano, Target.find("jetson-agx-orin-64gb"), Recipe.find("int4"), tmp_path / "kit")
    assert result.verdict == "passed" and result.kit and not verify(result.bundle)
    requires = EngineInfo.read(result.bundle).requires
    assert requires and (requires.architecture, requires.sm, requires.cuda) == ("aarch64", ["8.7"], "13.2")
    assert requires.versions == ["10.16", "11.4"]
    assert {"kit/decode.onnx", "plugins/libernie_plugins.so"} <= Manifest.read(result.bundle).files.keys()
    assert any("the engine itself has not run" in note for note in result.report_data.notes)
