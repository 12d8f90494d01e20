"""A run of the kit: its sections one after the other, each in a process of its own and with a time of its own."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.gpu import report, requirements
from tests.gpu.process import exit_code

ROOT = Path(__file__).parents[2]
#: Section → the most seconds that it may take.  An illegal access ends the process it happens in, and no other.
SECTIONS = {"build": 180, "check": 120, "end_to_end": 90, "graph": 60, "benchmark": 150, "sanitizer": 200}
LEAST = 10


def main() -> int:
    arguments = parsed()
    lacks = list(requirements.missing(arguments.emulated))
    if lacks:
        print("\n".join(lacks), file=sys.stderr)
        return 2
    if arguments.section:
        return section(arguments)
    result = everything(arguments)
    path = arguments.output or place(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(result), indent=1, ensure_ascii=False) + "\n")
    print("\n" + "\n".join([*report.summary(result), f"→ {path}"]), flush=True)
    return int(any(done["status"] != "passed" for done in result["sections"].values()))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/gpu/run", description="The kernels on this machine's GPU.")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-CARD.json")
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}; build is always"
    )
    parser.add_argument("--seconds", type=float, default=460, help="for all of it")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--emulated", action="store_true", help="on the CPU, tiny: tries the kit itself")
    for name in ("--section", "--library", "--notes"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.only.split(",")) - SECTIONS.keys()
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}")
    return arguments


def place(result: dict[str, Any]) -> Path:
    """What was emulated is no result."""
    if result["emulated"] or "card" not in result:
        return ROOT / "build" / "gpu" / "result.json"
    card = re.sub(r"[^a-z0-9]+", "-", result["card"].lower().removeprefix("nvidia")).strip("-")
    return ROOT / "benchmarks" / "results" / f"gpu-{card}.json"


def everything(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.kernels_compiled import sources_digest

    end = time.monotonic() + arguments.seconds
    result: dict[str, Any] = {
        "emulated": arguments.emulated,
        "times": "emulated: none of them means anything" if arguments.emulated else "measured on the card",
        "sources": sources_digest(),
        "commit": commit(),
        "sections": {},
    }
    library = ""
    for name, most in SECTIONS.items():
        if name != "build" and (name not in arguments.only.split(",") or not library):
            continue
        left = end - time.monotonic()
        if left < LEAST:
            result["sections"][name] = {"status": "left out, no time", "seconds": 0.0, "notes": []}
            continue
        print(f"\n=== {name}", flush=True)
        seconds = left if arguments.emulated else min(most, left)
        done = result["sections"][name] = in_its_process(name, seconds, library, arguments)
        if name == "build":
            for about in done["notes"]:
                library = about.pop("library", library)
                result.update(about)
    result["goals"] = report.goals(result)
    return result


def in_its_process(name: str, seconds: float, library: str, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "notes"
        command = [sys.executable, str(Path(__file__).with_name("__main__.py")), "--section", name]
        command += ["--library", library, "--notes", str(kept), "--seconds", str(seconds)]
        command += [f"--{flag}" for flag in ("emulated", "tiny") if getattr(arguments, flag)]
        begun = time.monotonic()
        # On the CPU one thread: several of tiny work wait for one another, where other processes take the cores.
        environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if arguments.emulated else {})}
        code = exit_code(command, seconds, env=environment)
        took = time.monotonic() - begun
        notes = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    status = f"cut off after {seconds:.0f} s" if code is None else "failed" if code else "passed"
    failures = [note.pop("failure") for note in notes if "failure" in note]
    if code and not failures:
        failures = [f"the process ended with {code}"]
    done: dict[str, Any] = {
        "status": status,
        "seconds": round(took, 1),
        "notes": [note for note in notes if note],
    }
    return done | ({"failure": failures[0]} if failures else {})


def section(arguments: argparse.Namespace) -> int:
    """In the process of its own: notes go, line by line, into a file."""
    with Path(arguments.notes).open("a") as kept:

        def note(line: str, value: Any) -> None:
            print(line, flush=True)
            kept.write(json.dumps(finite(value)) + "\n")
            kept.flush()

        try:
            if arguments.section == "build":
                build(arguments, note)
            else:
                run(arguments, note)
        except Exception as problem:
            traceback.print_exc()
            note("", {"failure": f"{type(problem).__name__}: {problem}"[:1000]})
            return 1
    return 0


def build(arguments: argparse.Namespace, note: Any) -> None:
    from tests.gpu.build import build, build_emulated, output_of
    from tests.gpu.device import Emulated, Gpu

    about = (Emulated() if arguments.emulated else Gpu()).about()
    compiler = "g++" if arguments.emulated else str(requirements.nvcc())
    about["driver"] = driver()
    about["nvcc"] = output_of(compiler, "--version").strip().splitlines()[0 if arguments.emulated else -1]
    note(f"{about['card']}, SM {about['sm']}, {about['nvcc']}", about)
    library = build_emulated() if arguments.emulated else build(about["sm"])
    note(str(library), {"library": str(library)})


def run(arguments: argparse.Namespace, note: Any) -> None:
    from tests.gpu.kit import Kit
    from tests.gpu.sizes import TINY, TRUE

    sizes = TINY if arguments.tiny or arguments.emulated else TRUE
    kit = Kit.open(Path(arguments.library), arguments.emulated, sizes, note, arguments.seconds)
    importlib.import_module(f"tests.gpu.{arguments.section}").run(kit)


def driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else None


def finite(value: Any) -> Any:
    """NaN and infinity, which are no JSON, as null."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout.strip() or None
