"""NVIDIA's compute-sanitizer over the checks at tiny sizes, a process a tool."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu.kit import Kit
from tests.gpu.process import exit_code
from tests.gpu.requirements import nvcc

TOOLS = ("memcheck", "racecheck", "synccheck")
ERRORS_FOUND = 99


def sanitizer() -> Path | None:
    compiler = nvcc()
    places = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
    places += [str(compiler.parent / "compute-sanitizer")] if compiler else []
    return next((Path(place) for place in places if place and Path(place).exists()), None)


def run(kit: Kit) -> None:
    command = sanitizer()
    if kit.device.emulated or command is None:
        why = "the emulation has its own" if kit.device.emulated else "compute-sanitizer is not installed"
        kit.note(f"not run: {why}", {"not_run": why})
        return
    found = []
    for place, tool in enumerate(TOOLS):
        share = (kit.end - 5 - time.monotonic()) / (len(TOOLS) - place)
        if code(kit, command, tool, share) not in (0, None):
            found.append(tool)
    if found:
        raise AssertionError(f"{', '.join(found)} found something, or the checks failed under it")


def code(kit: Kit, command: Path, tool: str, seconds: float) -> int | None:
    """The tool's exit code; None where it was cut off.  Each tensor has memory of its own, so that its end is seen."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(command), "--tool", tool, "--error-exitcode", str(ERRORS_FOUND)]
        arguments += ["--report-api-errors", "no", sys.executable]
        arguments += [str(Path(__file__).with_name("__main__.py")), "--section", "check", "--tiny"]
        arguments += ["--library", str(kit.library.path), "--notes", str(Path(folder) / "notes")]
        output = Path(folder) / "output"
        with output.open("w") as file:
            environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            ended = exit_code(arguments, seconds, stdout=file, stderr=file, env=environment)
        text = output.read_text(errors="replace")
    said = re.findall(r"=+ (.*SUMMARY.*)", text)
    first = re.findall(r"=+ ((?:Invalid|Error|Race|Barrier|Program|Uninitialized).*)", text)
    told = "; ".join([*said, *first[:3]]) or text[-300:]
    if ended is None:
        told = f"cut off after {seconds:.0f} s, {text.count(' ok')} checks in"
    kit.note(f"{tool}: {told}", {"tool": tool, "exit": ended, "said": told})
    return ended
