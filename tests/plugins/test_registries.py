"""The library for GPUs in TensorRT's own registries, which need none; and what it is made of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ernie_export.engine import plugin_library
from ernie_export.graph.operators import DOMAIN, SIGNATURES, VERSION
from plugins import fetch
from plugins.build import place
from tests.plugins.tensorrt_host import built
from tests.plugins.test_tensorrt import CASES

#: The lean runtimes of plugins/fetch.py: folder, major version.
REGISTRIES = {"10.16.0.72": ("tensorrt-lean-10", 10), "11.4.0.106": ("tensorrt-lean-11", 11)}
ATTRIBUTES = {name: dict(case().attributes) for name, case in CASES.items()}


def library() -> Path:
    """For one SM: the machine code is no part of what is tried here."""
    return built("cuda", "87")


@cache
def told(version: str) -> tuple[dict[str, Any], str]:
    """What in_registry.py found, and what came on standard error: without a GPU the registry has no logger."""
    folder, _ = REGISTRIES[version]
    environment = {**os.environ, "PYTHONPATH": str(fetch.folder(folder))}
    script = [sys.executable, str(Path(__file__).with_name("in_registry.py"))]
    done = subprocess.run(
        [*script, str(library() / "libernie_plugins.so")],
        input=json.dumps(ATTRIBUTES), capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("version", REGISTRIES)
def test_are_loaded_listed_and_made(version: str) -> None:
    found, said = told(version)
    assert found["version"] == version and found["loaded"]
    assert sorted(found["listed"]) == sorted(f"{DOMAIN}::{name} {VERSION}" for name in CASES)
    for name, made in found["made"].items():
        assert made["kind"] == "PLUGIN CREATOR_V3ONE" and made["core"] == [DOMAIN, name, str(VERSION)]
        assert made["attributes"] == [each.removesuffix(":float") for each in SIGNATURES[name][2].split()]
        assert made["build"] == ["PLUGIN_V3ONE_BUILD", 2, len(SIGNATURES[name][1].split())]
        assert made["runtime"] == "PLUGIN_V3ONE_RUNTIME" and made["metadata"].startswith(
            made["attributes"][0]
        )
        assert made["for the runtime"] and not made["one short"]
        assert f"{name}: the attribute {made['attributes'][-1]} is missing" in said


@pytest.mark.parametrize("version", REGISTRIES)
@pytest.mark.parametrize("name", CASES)
def test_from_the_registry_they_are_what_they_are_in_the_tests(name: str, version: str) -> None:
    """Made, cloned, asked what a builder asks, serialised and made anew from that; what was cut short is refused."""
    folder, major = REGISTRIES[version]
    tensorrt = fetch.folder(folder) / "tensorrt_lean_libs" / f"libnvinfer_lean.so.{major}"
    case, commands = CASES[name](), ("create", "build", "reload")
    mine = case.drive(folder=library(), commands=commands, tensorrt=tensorrt)
    assert mine["tensorrt"] == [str(int(version.split(".")[0]) * 10000 + int(version.split(".")[1]) * 100)]
    ours = case.drive(folder=library(), commands=commands)
    for word in (
        "created",
        "core",
        "types",
        "shapes",
        "output",
        "formats",
        "configure",
        "workspace",
        "metadata",
    ):
        assert mine[word] == ours[word], word
    assert mine["reloaded"][0].split(", told")[0] == ours["reloaded"][0].split(", told")[0]


@pytest.mark.parametrize("name", CASES)
def test_for_gpus_and_for_cpus_they_ask_the_same(name: str) -> None:
    commands = ("create", "build", "reload")
    assert (
        CASES[name]().drive(folder=library(), commands=commands).lines
        == CASES[name]().drive(commands=commands).lines
    )


def test_without_a_gpu_there_is_no_context_and_no_crash() -> None:
    case = CASES["MoEExperts"]()
    told = case.drive(folder=library(), commands=("create", "build", "attach", "run"))
    without = "MoEExperts: there is no context of execution: "
    assert told["attached"] == ["1"] or (
        told.errors[0].startswith(without) and told["run"] == ["without a context"]
    )


def dynamic(path: Path) -> str:
    command = ["readelf", "--dynamic", "--dyn-syms", "--version-info", "--wide", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def checked_as_distributed(path: Path) -> None:
    """Two functions, nothing of TensorRT and CUDA, and C and C++ libraries no newer than Ubuntu 22.04's."""
    lines = dynamic(path).splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    loaders = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert needed <= {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", *loaders}
    exported = {line.split()[-1] for line in lines if " GLOBAL " in line and " UND " not in line}
    assert exported == {"getCreators", "setLoggerFinder"}
    for name, newest in (("GLIBC", (2, 35)), ("GLIBCXX", (3, 4, 30))):
        versions = re.findall(rf"\b{name}_([0-9.]+)", "\n".join(lines))
        assert max(tuple(map(int, each.split("."))) for each in versions) <= newest


def test_needs_nothing_that_a_machine_may_lack() -> None:
    checked_as_distributed(library() / "libernie_plugins.so")


def test_in_the_package_it_is_found(tmp_path: Path) -> None:
    """As `make plugins` places it, for all SMs and architectures."""
    placed = place(library(), "x86_64", tmp_path)
    path, found = plugin_library.find("x86_64", folder=tmp_path)
    assert path.parent == placed and path.read_bytes() == (library() / path.name).read_bytes()
    assert found.sm == ["8.7"] and found.cuda.startswith("13.") and found.tensorrt.startswith("10.14.")
