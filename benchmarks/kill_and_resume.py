"""A build of the 21B's shape killed half-way, and the same command again: what is kept, and what that saves.

    python benchmarks/kill_and_resume.py               # 8 layers: 16 GB of disk, some minutes

`ernie-export build` runs on a synthetic checkpoint; when half of the weight files stand it is killed (SIGKILL).
The same command then goes on; it is stopped when the last weight file stands, since validation has a benchmark of
its own.  A file that was kept is the same file: its inode did not change.  Results:
benchmarks/results/kill_and_resume.json.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import build_memory

from ernie_export.checkpoint import synthetic
from ernie_export.plan.weights import weight_files
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.validate import environment

RESULTS = Path(__file__).parent / "results" / "kill_and_resume.json"


def standing(partial: Path) -> dict[str, int]:
    """Inodes of the weight files that have their final names."""
    return {path.name: path.stat().st_ino for path in (partial / "bundle" / "weights").glob("*.bin")}


def run(checkpoint: Path, output: Path, files: int, how: signal.Signals) -> dict[str, Any]:
    """`ernie-export build`, ended by a signal when so many weight files stand."""
    command = [sys.executable, "-m", "ernie_export", "build", str(checkpoint), "--target", "cpu"]
    partial, peak, begun = output.parent / f".{output.name}.partial", 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([*command, "--output", str(output)], stdout=told, stderr=told)
        while process.poll() is None and len(standing(partial)) < files:
            peak = max(peak, build_memory.anonymous(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        process.send_signal(how)
        code = process.wait()
        told.seek(0)
        said = told.read().strip().splitlines()
    if len(standing(partial)) < files:
        sys.exit(f"the build ended by itself ({code}): {said[-1:]}")
    return {
        "seconds": seconds,
        "signal": how.name,
        "exit_code": code,
        "peak": peak,
        "said": said[-1] if said else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="a folder on a large disk"
    )
    given = parser.parse_args()
    config = build_memory.of_depth(given.layers)
    files = weight_files(config, Recipe.find("int4").parts, config.max_position_embeddings)
    count = len(list(files))
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        folder = Path(name)
        build_memory.require_room(folder, build_memory.needed(given.layers))
        checkpoint, output = folder / "checkpoint", folder / "bundle"
        synthetic.synthesize("21b", checkpoint, Silent(), given.layers)
        build_memory.read(checkpoint)
        killed = run(checkpoint, output, count // 2 + 1, signal.SIGKILL)
        before = standing(folder / ".bundle.partial")
        resumed = run(checkpoint, output, count, signal.SIGINT)
        after = standing(folder / ".bundle.partial")
        build_memory.read(checkpoint)
        whole = run(checkpoint, folder / "whole", count, signal.SIGINT)
    kept = [name for name, inode in before.items() if after.get(name) == inode]
    result = {
        "layers": given.layers,
        "checkpoint_bytes": synthetic.size_of(build_memory.of_depth(given.layers)),
        "weight_files": count,
        "standing_when_killed": sorted(before),
        "kept": sorted(kept),
        "killed": killed,
        "resumed": resumed,
        "whole": whole,
        "machine": environment.machine(),
        "software": environment.software(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"killed after {killed['seconds']:.1f} s with {len(before)} of {count} weight files; "
        f"{len(kept)} kept, the rest in {resumed['seconds']:.1f} s (all at once: {whole['seconds']:.1f} s)"
    )


if __name__ == "__main__":
    main()
