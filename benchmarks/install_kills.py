"""Installations that are killed at random moments: none may leave a device broken.

    python -m benchmarks.install_kills [--kills 100] [--seed 1] [--work FOLDER]

A device has one version of ernie-nano active and is given another, as a bundle, and as a kit that it builds; a
service is to become ready with it.  SIGKILL comes at a moment drawn evenly from the time that the installation
takes.  Then either the old version or the new one must be active and whole, with the new one its service must have
been seen ready or be known as still to be asked, and the next installation must succeed and leave nothing over.
The trial of the engine is left out: it changes nothing, and takes longer than all the rest.  The result is written to
benchmarks/results/kills.json, and as a table into docs/power-loss.md.
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
from typing import Any

from benchmarks.doc_table import markdown, with_table
from ernie_export import pipeline
from ernie_export.checkpoint import embedded
from ernie_export.device.place import Place
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment
from tests.device.test_power_loss import require_sound, run, with_service

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kills.json"
DOCUMENT = ROOT / "docs" / "power-loss.md"
OFFERED = {"a bundle": "cpu", "a kit": "x86-64"}
"""What comes to the device, and the target that makes it one."""
PARTS = 4
"""Of an installation's time: the rows of the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of a bundle, and as many of a kit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        first = built(Path(folder), "int4", "cpu")
        offered = {
            what: kills(Path(folder), first, what, given.kills, random.Random(given.seed)) for what in OFFERED
        }
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.machine(),
        "software": environment.software(),
        "seed": given.seed,
        "offered": offered,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    DOCUMENT.write_text(with_table(DOCUMENT.read_text("utf-8"), "install_kills.py", table(result)), "utf-8")
    sys.exit(any(found["broken"] for found in offered.values()))


def table(result: dict[str, Any]) -> str:
    """By what was offered, and by the part of the installation's time at which the kill came."""
    rows = []
    for what, found in result["offered"].items():
        for part in range(PARTS):
            killed = [
                kill
                for kill in found["kills"]
                if part == min(int(PARTS * kill["after_seconds"] / found["installation_seconds"]), PARTS - 1)
            ]
            then = Counter(kill["then"] for kill in killed)
            moment = f"{part * 100 // PARTS} to {(part + 1) * 100 // PARTS} %"
            rows.append((what, moment, len(killed), *(then[state] for state in STATES)))
        then = Counter(kill["then"] for kill in found["kills"])
        rows.append((what, "**all**", len(found["kills"]), *(then[state] for state in STATES)))
    return markdown(("offered", "killed after", "kills", *STATES), rows)


STATES = ("the old one is active", "the new one, its service still to be asked", "the new one", "broken")


def kills(folder: Path, first: Path, what: str, count: int, draw: random.Random) -> dict[str, Any]:
    versions = first, built(folder, "int8", OFFERED[what])
    device = folder / "device"
    shutil.rmtree(device, ignore_errors=True)
    device.mkdir()
    assert run(device, versions[0], "kill", 0) == 0
    takes = seconds(device, versions[1], folder)
    print(f"the installation of {what} takes {takes:.3f} s", flush=True)
    found: list[dict[str, Any]] = []
    broken: list[str] = []
    while len(found) < count:
        after = draw.uniform(0, takes)
        copy = fresh(device, folder)
        if not killed(copy, versions[1], after):
            continue  # it was quicker than that
        try:
            then = state(copy)
            require_sound(copy, versions, f"killed after {after:.4f} s")
        except Exception as error:  # whatever it is, the device is broken
            then = STATES[3]
            broken.append(f"killed after {after:.4f} s: {error}")
        found.append({"after_seconds": round(after, 4), "then": then})
        if len(found) % 10 == 0:
            print(f"{what}: {len(found)} of {count} kills, {len(broken)} broken", flush=True)
    return {"installation_seconds": round(takes, 4), "broken": broken, "kills": found}


def state(device: Path) -> str:
    place = Place(device)
    if place.active_number() == 1:
        return STATES[0]
    pending = place.pending()
    assert pending or (device / "asked").exists(), "nobody asked its service, and nobody knows"
    return STATES[1] if pending else STATES[2]


def built(folder: Path, recipe: str, target: str) -> Path:
    print(f"build {recipe} for {target}", flush=True)
    output = folder / f"{recipe}-{target}"
    return pipeline.build(embedded.folder(), Target.find(target), Recipe.find(recipe), output).bundle


def fresh(device: Path, folder: Path) -> Path:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "-a", str(device), str(copy)], check=True)
    with_service(copy)
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
