"""The kit itself, without a GPU: all of it on the emulated kernels, and what it says where something is wrong."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.gpu import requirements, sanitizer, session
from tests.gpu.build import build
from tests.gpu.process import exit_code
from tests.plugins.emulated import ROOT, built

#: A busy machine takes its time; none of it is asserted.
pytestmark = pytest.mark.timeout(600)
RUN = ROOT / "tests" / "gpu" / "run"
#: What a machine with PyTorch and nvcc alone does not have.
LACKING = [
    "jinja2",
    "ml_dtypes",
    "numba",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx_ir",
    "platformdirs",
    "polygraphy",
    "pydantic",
    "rich",
    "safetensors",
    "tokenizers",
    "transformers",
    "typer",
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """Everything, on a machine that has PyTorch and numpy alone: the results, and the last lines."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({LACKING!r}))\n")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(folder)}
    command = [str(RUN), "--emulated", "--output", str(folder / "result.json"), "--seconds", "560"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text()), done.stdout.splitlines()[-40:]


def test_every_section_passes(emulated: tuple[dict[str, Any], list[str]]) -> None:
    sections = emulated[0]["sections"]
    assert list(sections) == list(session.SECTIONS)
    assert {name: done["status"] for name, done in sections.items()} == dict.fromkeys(sections, "passed")
    assert len(sections["check"]["notes"]) > 100 and all(
        note["passed"] for note in sections["check"]["notes"]
    )
    assert {note["against"] for note in sections["end_to_end"]["notes"] if "against" in note} == {
        "plain PyTorch"
    }
    text = next(note for note in sections["end_to_end"]["notes"] if note.get("name") == "text")
    assert text["same"] == text["of"]
    assert all(note["same"] for note in sections["graph"]["notes"])
    kernels = {note.get("kernel") for note in sections["benchmark"]["notes"]}
    assert kernels >= {"experts", "linear", "attention", "routing"}
    assert sections["sanitizer"]["notes"] == [{"not_run": "the emulation has its own"}]


def test_what_is_emulated_says_so(emulated: tuple[dict[str, Any], list[str]]) -> None:
    result, lines = emulated
    assert result["emulated"] is True and result["times"] == "emulated: none of them means anything"
    assert [goal["met"] for goal in result["goals"]] == [None] * 5
    assert session.place(result).parent == ROOT / "build" / "gpu"
    assert "EMULATED: the kernels ran on the CPU; no time here means anything" in lines
    assert lines[-1].startswith("→ ")


def test_transformers_is_asked_where_it_is_there(tmp_path: Path) -> None:
    command = [str(RUN), "--emulated", "--only", "end_to_end", "--output", str(tmp_path / "result.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    notes = json.loads((tmp_path / "result.json").read_text())["sections"]["end_to_end"]["notes"]
    assert {note["against"] for note in notes if note["name"].startswith("ernie-nano")} == {"transformers"}
    plain = next(note for note in notes if note["name"] == "plain against transformers")
    assert plain["error"] < 1e-5


def test_a_bare_python_is_told_what_it_lacks() -> None:
    command = [sys.executable, "-S", "-E", str(ROOT / "tests" / "gpu" / "__main__.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert (
        lines[0] == f"torch is not installed for {sys.executable}: `{sys.executable} -m pip install torch`."
    )
    assert lines[1].startswith("numpy is not installed")


def test_without_gpu_compiler_or_toolkit_each_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(requirements, "nvcc", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = list(requirements.missing(emulated=False))
    assert [line.split(":")[0] for line in said] == [
        "g++ is not installed",
        "nvcc is not installed",
        "PyTorch finds no GPU",
    ]
    assert list(requirements.missing(emulated=True)) == said[:1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    said = list(requirements.missing(emulated=False))
    assert said[-1] == "Tesla T4 has compute capability 7.5: the kernels need 8.0 or newer."


def test_the_toolkit_that_is_named_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    monkeypatch.setenv("ERNIE_CUDA_ROOT", str(tmp_path))
    assert requirements.nvcc() == tmp_path / "bin" / "nvcc"
    monkeypatch.delenv("ERNIE_CUDA_ROOT")
    assert requirements.nvcc() not in (None, tmp_path / "bin" / "nvcc")  # the one that pip installed


def arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"emulated": True, "tiny": False} | changes)


def test_what_is_no_number_is_null() -> None:
    assert session.finite({"error": float("nan"), "of": [1.5, float("inf")]}) == {
        "error": None,
        "of": [1.5, None],
    }


def test_a_section_that_fails_or_hangs_stops_no_other(tmp_path: Path) -> None:
    failed = session.in_its_process("check", 60, str(tmp_path / "no.so"), arguments())
    assert failed["status"] == "failed" and "does not load" in failed["failure"]
    hung = session.in_its_process("check", 0.2, "", arguments())
    assert hung["status"] == "cut off after 0 s" and hung["notes"] == []


def test_what_is_cut_off_ends_with_all_that_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    command = ["sh", "-c", f"sleep 60 & echo $! > {child}; wait"]
    assert exit_code(command, 0.5) is None
    pid = int(child.read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def test_a_wrong_result_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from plugins.torch.operators import remove
    from tests.gpu import check
    from tests.gpu.kit import Kit
    from tests.gpu.sizes import TINY

    said: list[Any] = []
    kit = Kit.open(
        built("plain") / "libernie_kernels.so", True, TINY, lambda _, value: said.append(value), 60
    )
    for part in ("linear", "experts", "expert_out_of_range", "attention"):
        monkeypatch.setattr(check, part, lambda kit: iter(()))
    try:
        check.run(kit)
        assert said and all(value["passed"] for value in said)
        right = torch.ops.ernie.moe_routing

        def wrong(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:  # each expert's neighbour
            indices, scores = right(*arguments)
            return (indices + 1) % len(arguments[2]), scores

        monkeypatch.setattr(torch.ops.ernie, "moe_routing", wrong)
        with pytest.raises(AssertionError, match="8 checks failed: routing "):
            check.run(kit)
    finally:
        remove("cpu")


@pytest.mark.parametrize(("code", "said"), [(0, "ERROR SUMMARY: 0 errors"), (99, "ERROR SUMMARY: 3 errors")])
def test_the_sanitizer_is_listened_to(
    code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "compute-sanitizer"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "========= {said}"\nexit {code}\n')
    command.chmod(0o755)
    monkeypatch.setattr(sanitizer, "sanitizer", lambda: command)
    notes: list[Any] = []
    library, device = SimpleNamespace(path="the.so"), SimpleNamespace(emulated=False)
    kit: Any = SimpleNamespace(
        device=device, library=library, note=lambda _, value: notes.append(value), end=time.monotonic() + 60
    )
    if code:
        with pytest.raises(AssertionError, match="memcheck, racecheck, synccheck found something"):
            sanitizer.run(kit)
    else:
        sanitizer.run(kit)
    assert [note["said"] for note in notes] == [said] * 3
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3 and all("--section check --tiny --library the.so" in call for call in calls)


@pytest.mark.slow
def test_nvcc_alone_builds_the_library() -> None:
    """It loads without a driver, and its host code answers."""
    from plugins.torch.library import Library, Linear, Routing

    path = build("90")
    assert path == ROOT / "build" / "gpu" / "sm_90" / "libernie_kernels.so"
    library = Library(path, torch.device("cpu"))
    assert library.workspace(Routing(tokens=4, hidden=256, experts=8, k=2)) == 4 * 8 * 4
    with pytest.raises(Exception, match="bits is 3; it must be 4 or 8"):
        library.launch(Linear(bits=3))
