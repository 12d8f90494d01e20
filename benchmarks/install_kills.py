"""Installations that are killed at random moments: none may leave a device broken.

    python -m benchmarks.install_kills [--kills 200] [--seed 1] [--work FOLDER]

A device has one version of ernie-nano active and is given another; SIGKILL comes at a moment drawn evenly from
the time that the installation takes.  Then either the old version or the new one must be active and whole, and
the next installation must succeed and leave nothing over.  The trial of the engine is left out: it changes
nothing, and takes longer than all the rest.  The result is written to benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from ernie_export import pipeline
from ernie_export.checkpoint import embedded
from ernie_export.device.place import Place
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment
from tests.device.test_power_loss import require_sound, run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kills.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        found = kills(Path(folder), given.kills, random.Random(given.seed))
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.machine(),
        "software": environment.software(),
        "seed": given.seed,
        **found,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{found['kills']} kills, {len(found['broken'])} broken; active then: {found['active_then']}")
    sys.exit(bool(found["broken"]))


def kills(folder: Path, count: int, draw: random.Random) -> dict[str, object]:
    versions = built(folder, "int4"), built(folder, "int8")
    device = folder / "device"
    device.mkdir()
    assert run(device, versions[0], "kill", 0) == 0
    takes = seconds(device, versions[1], folder)
    print(f"an installation takes {takes:.3f} s", flush=True)
    broken: list[str] = []
    active: Counter[str] = Counter()
    moments: list[float] = []
    while len(moments) < count:
        after = draw.uniform(0, takes)
        copy = fresh(device, folder)
        if not killed(copy, versions[1], after):
            continue  # it was quicker than that
        moments.append(after)
        try:
            number = (now := Place(copy).active()) and now.number
            active["old" if number == 1 else "new"] += 1
            require_sound(copy, versions, f"killed after {after:.4f} s")
        except Exception as error:  # whatever it is, the device is broken
            broken.append(f"killed after {after:.4f} s: {error}")
        if len(moments) % 10 == 0:
            print(f"{len(moments)} of {count} kills, {len(broken)} broken", flush=True)
    return {
        "kills": count,
        "installation_seconds": round(takes, 4),
        "broken": broken,
        "active_then": dict(active),
        "killed_after_seconds": [round(each, 4) for each in moments],
    }


def built(folder: Path, recipe: str) -> Path:
    print(f"build {recipe}", flush=True)
    output = folder / recipe
    return pipeline.build(embedded.folder(), Target.find("cpu"), Recipe.find(recipe), output).bundle


def fresh(device: Path, folder: Path) -> Path:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "-a", str(device), str(copy)], check=True)
    return copy


def begun(device: Path, bundle: Path) -> subprocess.Popen[str]:
    """An installation that has loaded what it needs, and begins now."""
    command = [sys.executable, "-m", "tests.device.recorder", str(device), str(bundle), "kill", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert process.stdout and process.stdout.readline() == "begun\n"
    return process


def seconds(device: Path, bundle: Path, folder: Path) -> float:
    """What an installation takes, the longest of three."""
    taken = []
    for _ in range(3):
        process = begun(fresh(device, folder), bundle)
        since = time.perf_counter()
        assert process.wait() == 0
        taken.append(time.perf_counter() - since)
    return max(taken)


def killed(device: Path, bundle: Path, after: float) -> bool:
    """Whether the kill came before the installation had ended."""
    process = begun(device, bundle)
    time.sleep(after)
    process.kill()
    return process.wait() == -signal.SIGKILL


if __name__ == "__main__":
    main()
