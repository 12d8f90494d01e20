"""Fuzz every parser in turn: `python -m tests.fuzz [--seconds N] [--results FILE] [HARNESS …]`.

What is found lies in build/fuzz/HARNESS/findings/, and the exit code is 1. The results file keeps every run:
how often the code ran, for how long, how much of it was reached, what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz.harness import FOLDER, names

ROOT = FOLDER.parents[1]
WORK = ROOT / "build" / "fuzz"
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
HANG = 20
"""Seconds that one input may take."""
MEMORY = 3072
"""MB that the process may take."""
LONGEST = 8192
"""Bytes of an input, unless a seed is longer."""
ARTIFACTS = ("crash-*", "timeout-*", "oom-*")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("harness", nargs="*", choices=[*names(), []], help="all, if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each harness (default 60)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = 0
    for name in given.harness or names():
        run = fuzz(name, given.seconds)
        add(given.results, run)
        found += len(run["findings"])
        print(f"{name:20} {run['executions']:>10,} runs in {run['seconds']:>6,} s, coverage {run['coverage']:>6,}, "
              f"findings: {', '.join(run['findings']) or 'none'}", flush=True)  # fmt: skip
    return 1 if found else 0


def fuzz(name: str, seconds: int) -> dict[str, Any]:
    """Run one harness; begin again where it was killed by what it found, until the time is over."""
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in (path for pattern in (*ARTIFACTS, "findings/*") for path in folder.glob(pattern)):
        old.unlink()
    run = {
        "harness": name, "began": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": 0, "executions": 0,
        "coverage": 0, "features": 0, "corpus": 0,
    }  # fmt: skip
    begun = time.monotonic()
    while (left := seconds - int(time.monotonic() - begun)) > 0:
        with (folder / "log").open("wb") as log:
            code = subprocess.call(
                [sys.executable, "-m", "tests.fuzz.one", name, str(folder), f"-max_total_time={left}",
                 f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}", "-print_final_stats=1", "-len_control=0",
                 f"-max_len={_longest(folder)}"],
                cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        _count(run, (folder / "log").read_text("utf-8", "replace"))
        if code and not any(path for pattern in ARTIFACTS for path in folder.glob(pattern)):
            raise SystemExit(f"{name} ended with {code}: see {folder / 'log'}")
    run["seconds"] = round(time.monotonic() - begun)
    return run | {"findings": _findings(folder), "versions": {"atheris": version("atheris")}}


def _longest(folder: Path) -> int:
    return max([LONGEST, *(path.stat().st_size for path in folder.glob("corpus/*"))])


def _count(run: dict[str, Any], log: str) -> None:
    """Add what libFuzzer tells: `#1234 NEW cov: 56 ft: 78 corp: 9/10Kb …`."""
    told = re.findall(r"^#(\d+)\s.*?\bcov: (\d+) ft: (\d+) corp: (\d+)", log, re.MULTILINE)
    if told:
        last, *reached = map(int, told[-1])
        executed = re.findall(r"stat::number_of_executed_units:\s+(\d+)", log)
        run["executions"] += max(last, *map(int, executed)) if executed else last
        run |= dict(zip(("coverage", "features", "corpus"), reached, strict=True))


def _findings(folder: Path) -> list[str]:
    raised = [path.name for path in folder.glob("findings/*") if path.suffix != ".txt"]
    killed = [path.name for pattern in ARTIFACTS for path in folder.glob(pattern)]
    return sorted([*raised, *killed])


def add(results: Path, run: dict[str, Any]) -> None:
    """Append the run, and sum up: totals by harness, over all its runs."""
    kept = json.loads(results.read_bytes())["runs"] if results.exists() else []
    runs = [*kept, run]
    totals = {
        name: {
            "seconds": sum(each["seconds"] for each in runs if each["harness"] == name),
            "executions": sum(each["executions"] for each in runs if each["harness"] == name),
            "coverage": max(each["coverage"] for each in runs if each["harness"] == name),
        }
        for name in sorted({each["harness"] for each in runs})
    }
    every = {
        "seconds": sum(total["seconds"] for total in totals.values()),
        "executions": sum(total["executions"] for total in totals.values()),
    }
    results.write_text(json.dumps({"total": every, "harnesses": totals, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
