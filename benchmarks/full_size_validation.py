"""Validation at the true layer size of the 21B, layer by layer: its memory and its time.

    python benchmarks/full_size_validation.py --layers 28 --work /somewhere/large

writes benchmarks/results/full_size_validation.json and prints its table; what that holds of other depths
and recipes stays. For each number of layers a synthetic checkpoint is made, built, and validated in a
process of its own, twice: the second time with what the reference computed kept from the first. The
anonymous memory (RssAnon of /proc/self/status) is sampled by stage. 28 layers need 65 GB of
disk; what is there already in --work is used again. Nothing about quality is claimed: the weights are
random. But that nothing is wrong is known of them too, so the recipe's gates must pass.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from plan_memory import WATCHED, build

from ernie_export.checkpoint import synthetic
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.validate import environment

RESULTS = Path(__file__).parent / "results" / "full_size_validation.json"
LIMIT = 10 << 30
"""What is promised of the anonymous memory."""
BASE, LAYER = 3 << 30, 2.2e9
"""Bytes of disk: embedding and what is kept once, and of each layer its checkpoint, its build and its recording."""
CONTEXT = 4096
VALIDATE = (
    WATCHED
    + """
from ernie_export.validate import findings, run

class Stages:
    @contextmanager
    def step(self, title, total=None, unit=""):
        print(f"  {title}", file=sys.stderr, flush=True)
        yield self
    def advance(self, amount=1):
        pass

timed = findings.Findings.timed

@contextmanager
def noted(self, name):
    global stage
    stage = name
    with timed(self, name):
        yield
    print(f"    {name}: {self.timings[name]:.0f} s so far", file=sys.stderr, flush=True)

findings.Findings.timed = noted
bundle, checkpoint, keep = map(Path, sys.argv[1:])
recipe = Recipe.read(bundle / "recipe.toml")
begun = time.perf_counter()
report = run.validate(
    bundle, checkpoint, recipe.gates, Stages(), recipe=recipe.name, target="cpu", way="layers", keep=keep
)
print(json.dumps({
    "seconds": time.perf_counter() - begun,
    "anonymous_bytes": highest,
    "timings": report.timings,
    "notes": report.notes,
    "verdict": report.verdict,
    "alarms": {gate.name: gate.value for gate in report.gates if not gate.passed},
    "measured": {gate.name: float(f"{gate.value:.3g}") for gate in report.gates if gate.value is not None},
    "windows": report.inputs.windows,
    "tokens": report.inputs.tokens,
}))
"""
)


def measure(layers: int, recipe: Recipe, work: Path) -> list[dict[str, Any]]:
    """Both runs at this depth; the checkpoint and the build stay in `work`."""
    checkpoint, built = work / f"checkpoint-{layers}", work / f"build-{layers}-{recipe.name}"
    if not checkpoint.exists():
        print(f"{layers} layers: write the checkpoint", flush=True)
        synthetic.synthesize("21b", checkpoint, Silent(), layers)
    if not (built / "bundle" / "config.json").exists():
        print(f"{layers} layers: build {recipe.name}", flush=True)
        shutil.rmtree(built, ignore_errors=True)
        build(checkpoint, recipe, CONTEXT, built)
    keep = work / f"kept-{layers}"
    shutil.rmtree(keep, ignore_errors=True)
    rows = []
    for kept in (False, True):
        print(f"{layers} layers: validate, {'with' if kept else 'without'} what was kept", flush=True)
        command = [sys.executable, "-c", VALIDATE, built / "bundle", checkpoint, keep]
        ran = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(ran.stdout)
        rows.append(
            {
                "layers": layers,
                "recipe": recipe.name,
                "kept": kept,
                "checkpoint_bytes": sum(Checkpoint.open(checkpoint).files.values()),
                "peak_anonymous_bytes": max(found["anonymous_bytes"].values()),
                **found,
            }
        )
        print(line(rows[-1]), flush=True)
    shutil.rmtree(keep)
    return rows


def line(row: dict[str, Any]) -> str:
    peaks = ", ".join(f"{stage} {peak / 1e9:.2f}" for stage, peak in row["anonymous_bytes"].items())
    return (
        f"{row['layers']:2} layers {row['recipe']}{' kept' if row['kept'] else '     '}: "
        f"{row['verdict']}, {row['seconds']:6.0f} s, "
        f"at most {row['peak_anonymous_bytes'] / 1e9:.2f} GB anonymous ({peaks})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--work", type=Path, required=True, help="a folder with room, on a fast disk")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in given.work.rglob("*") if path.is_file())
    needed = sum(BASE + LAYER * layers for layers in given.layers)
    if shutil.disk_usage(given.work).free + there < needed:
        sys.exit(f"{given.work} needs room for {needed / 1e9:.0f} GB")
    recipe, rows = Recipe.find(given.recipe), earlier()
    for layers in given.layers:
        rows = [row for row in rows if (row["layers"], row["recipe"]) != (layers, recipe.name)]
        rows += measure(layers, recipe, given.work)
        write(rows)
    if over := [row for row in rows if row["peak_anonymous_bytes"] > LIMIT]:
        sys.exit(f"{len(over)} of {len(rows)} runs took more than {LIMIT / 1e9:.1f} GB")
    if failed := [row for row in rows if row["verdict"] == "failed"]:
        sys.exit(f"{len(failed)} of {len(rows)} runs gave a false alarm")


def earlier() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    result = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": environment.machine(),
        "software": environment.software(),
        "limit_bytes": LIMIT,
        "rows": sorted(rows, key=lambda row: (row["recipe"], row["layers"], row["kept"])),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
