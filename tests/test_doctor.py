from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from ernie_export import doctor
from ernie_export.doctor import diagnose
from ernie_export.engine import found
from ernie_export.engine.found import Gpu


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch):
    """Takes versions of packages for installed."""

    def pretend(**found: str | None) -> None:
        real = metadata.version

        def version(name: str) -> str:
            known = found.get(name.replace("-", "_"), real)
            if known is None:
                raise metadata.PackageNotFoundError(name)
            return real(name) if known is real else str(known)

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def target(name: str):
    return next(target for target in diagnose().targets if target.name == name)


def cpu():
    return target("cpu")


def test_what_is_needed_is_what_pyproject_asks_for() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {text.split(",")[0] for extra in ("build", "run") for text in extras[extra]}
    assert {f"{needed.name}>={needed.minimum}" for needed in doctor.NEEDED} == asked
    assert {needed.name for needed in doctor.NEEDED if needed.to == "run"} == {
        text.split(">=")[0] for text in extras["run"]
    }


def test_this_machine_can_build_and_run() -> None:
    found = diagnose()
    assert all(package.state == "ok" for package in found.packages)
    assert "CPUExecutionProvider" in found.providers
    assert cpu().can_build and cpu().can_run and not cpu().missing
    assert found.cores >= 1
    assert 0 < found.memory_available <= found.memory
    assert all(disk.free > 0 for disk in found.disks)


def test_without_their_provider_bundles_for_gpus_are_built_and_do_not_run() -> None:
    for name, provider in (
        ("cuda", "CUDAExecutionProvider"),
        ("rtx", "NvTensorRTRTXExecutionProvider"),
    ):
        target = next(target for target in diagnose().targets if target.name == name)
        assert target.can_build and not target.can_run
        lacking, driver = target.missing
        assert f"{name} needs ONNX Runtime with {provider}, which" in lacking
        assert driver == f"{name} needs a driver for CUDA 13.0, and there is none"
        assert "pip install" in target.remedy


def test_without_torch_bundles_still_run(versions) -> None:
    versions(torch=None)
    assert cpu().missing == ["torch is missing"]
    assert not cpu().can_build and cpu().can_run
    assert cpu().remedy == "pip install 'ernie-export[cpu]'"


def test_without_onnxruntime_nothing_runs(versions) -> None:
    versions(onnxruntime=None)
    assert cpu().missing == ["onnxruntime is missing"]
    assert not cpu().can_run


def test_onnxruntime_gpu_will_do(versions) -> None:
    versions(onnxruntime=None, onnxruntime_gpu="1.32.0")
    assert cpu().can_build


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.8.9", "too old"), ("2.9", "ok"), ("2.13.0+cpu", "ok"), ("2.10.0rc1", "ok"), ("3", "ok")],
)
def test_versions_are_compared_as_numbers(versions, version: str, state: str) -> None:
    versions(torch=version)
    assert next(package.state for package in diagnose().packages if package.name == "torch") == state


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [(None, "onnxruntime does not load"), ("1.32.0", "onnxruntime and onnxruntime-gpu are both installed")],
)
def test_an_onnxruntime_that_does_not_load(
    versions, monkeypatch: pytest.MonkeyPatch, gpu: str | None, reason: str
) -> None:
    versions(onnxruntime_gpu=gpu)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it raises
    assert cpu().missing == [reason]
    assert not cpu().can_run and "uninstall" in cpu().remedy


def test_engines_for_rtx_are_built_anywhere_and_run_on_their_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "driver", lambda: (None, None))
    lacking = target("rtx-4090")
    assert lacking.can_build and not lacking.can_run
    assert lacking.missing == ["rtx-4090 needs a driver for CUDA 13.0, and there is none"]
    assert lacking.remedy.startswith("Install NVIDIA's driver")
    monkeypatch.setattr(found, "driver", lambda: ("13.0", Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30)))
    assert target("rtx-4090").can_run
    other = target("rtx-5090")
    assert other.can_build and not other.can_run
    assert other.missing == ["rtx-5090 is for compute capability 12.0, NVIDIA GeForce RTX 4090 has 8.9"]


@pytest.mark.parametrize(
    ("version", "problem", "said"),
    [
        (
            None,
            "it is not installed",
            "rtx-4090 needs TensorRT for RTX 1, which does not load here (it is not installed)",
        ),
        ("2.0.0", "", "rtx-4090 needs TensorRT for RTX 1, here is 2.0.0"),
    ],
)
def test_without_its_runtime_nothing_is_built_for_rtx(
    monkeypatch: pytest.MonkeyPatch, version: str | None, problem: str, said: str
) -> None:
    real = found.version_of
    monkeypatch.setattr(
        found, "version_of", lambda module: (version, problem) if module == "tensorrt_rtx" else real(module)
    )
    state = target("rtx-4090")
    assert not state.can_build and not state.can_run and state.missing[0] == said
    assert "pip install tensorrt-rtx-cu13" in state.remedy
    assert cpu().can_build


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert diagnose().gpus == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 580.1'\n")
    program.chmod(0o755)
    assert diagnose().gpus == ["NVIDIA L4, 23034 MiB, 580.1"]
    program.write_text("#!/bin/sh\necho broken; exit 9\n")
    assert diagnose().gpus == []


def test_the_cache_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERNIE_EXPORT_CACHE", str(tmp_path / "not" / "yet"))
    disk = diagnose().disks[1]
    assert disk.folder == str(tmp_path / "not" / "yet") and disk.free > 0 and disk.writable
