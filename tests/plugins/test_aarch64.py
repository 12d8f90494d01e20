"""The library for Jetsons, cross-built: what it is, and its host's side under qemu."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.plugins.tensorrt_host import built
from tests.plugins.test_registries import checked_as_distributed
from tests.plugins.test_tensorrt import CASES

QEMU = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")


def library() -> Path:
    """For Orin alone, to be quick; `make plugins` builds it for Thor too."""
    return built("aarch64", "87")


def test_is_what_a_jetson_loads() -> None:
    path = library() / "libernie_plugins.so"
    done = subprocess.run(["readelf", "--file-header", str(path)], capture_output=True, text=True, check=True)
    assert "AArch64" in done.stdout and "DYN (Shared object file)" in done.stdout
    checked_as_distributed(path)


@pytest.mark.parametrize("name", CASES)
def test_asks_and_answers_as_on_this_machine(name: str) -> None:
    commands = ("create", "build", "reload")
    there = CASES[name]().drive(folder=library(), launcher=QEMU, commands=commands)
    assert there.lines == CASES[name]().drive(commands=commands).lines
    assert there["configure"] == ["0"] and there["reloaded"][0].startswith("1, refused")


def test_refuses_as_on_this_machine() -> None:
    case = CASES["MoEExperts"]()
    case.inputs[3] = case.inputs[5]
    commands = ("create", "build", "attach", "run")
    there = case.drive(folder=library(), launcher=QEMU, commands=commands)
    assert "MoEExperts: gate_up has the shape [6, 64, 4] in int32; it must be [6, 64, 8]" in there.errors
    assert there.errors[-1].startswith("MoEExperts: there is no context of execution: ")
    assert there["run"] == ["without a context"]
