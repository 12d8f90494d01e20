"""The stages of a build, each in a process of its own, on machines that have too little."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.errors import UserError, WorkError
from ernie_export.kit import stage
from ernie_export.kit.build import Settings, build
from ernie_export.kit.contents import Contents
from ernie_export.plan import machine
from ernie_export.progress import Silent

LESS = r"Stop what else runs here, ask for less with --context 512 \(it needs .* MB\), or build a kit with fewer bits"


def wrapped(monkeypatch: pytest.MonkeyPatch, folder: Path, before: str) -> None:
    """Stages begin with these words of a shell."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\n{before}\nexec "{sys.executable}" "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.parametrize(
    ("before", "error", "words"),
    [
        ("ulimit -v 400000", WorkError, rf"There is too little memory for the engine \(.*\). {LESS}"),
        (
            "kill -9 $$",
            WorkError,
            rf"too little memory for the engine \(the system ended its process\). {LESS}",
        ),
        ("kill -11 $$", WorkError, r"The engine crashes on this device \(SIGSEGV\)"),
        ("echo no such library >&2; exit 3", WorkError, r"crashes .* \(exit code 3: no such library\)"),
    ],
)
def test_what_ends_a_stage_is_told(
    kit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    error: type[Exception],
    words: str,
) -> None:
    wrapped(monkeypatch, tmp_path, before)
    with pytest.raises(error, match=words):
        stage.run("answers", Contents(kit), tmp_path, None, 2048)


def test_a_kit_for_a_runtime_that_the_program_does_not_know(kit: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(kit, tmp_path / "kit"))
    text = (copy / "engine.json").read_text()
    (copy / "engine.json").write_text(text.replace('"onnxruntime-cpu"', '"another"'))
    with pytest.raises(UserError, match="is for the runtime another, which its program does not know"):
        stage.run("engine", Contents(copy), tmp_path, None, 2048)


def test_too_little_memory(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (1 << 30, 1 << 20))
    monkeypatch.setattr(machine, "mapped", lambda: 0)
    with pytest.raises(
        WorkError, match=r"needs .* with 2,048 tokens of context, and 1.05 MB are free. " + LESS
    ):
        build(kit, tmp_path / "built", Settings(), Silent())
    with pytest.raises(
        WorkError, match=r"with 512 tokens .* Stop what else runs here, or build a kit with fewer"
    ):
        build(kit, tmp_path / "built", Settings(context=512), Silent())
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(WorkError, match=r"The build writes .* where 1 kB are free. Free some space"):
        build(kit, tmp_path / "built", Settings(), Silent())


def test_a_stage_dies_with_the_build(kit: Path, tmp_path: Path) -> None:
    """Nothing runs on when the program is killed."""
    code = f"""
import os, signal, subprocess, sys
from ernie_export.kit import stage
words = ["answers", {str(kit)!r}, {str(tmp_path)!r}, "0", "2048"]
child = subprocess.Popen([sys.executable, "-m", "ernie_export.kit.stage", *words], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
while b"numpy" not in open(f"/proc/{{child.pid}}/maps", "rb").read():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    state = Path(f"/proc/{int(ran.stdout)}/stat")
    for _ in range(1000):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.01"])
    raise AssertionError("the stage still runs")
