"""What a device's trial of an engine takes and says at the real vocabulary, where ernie-nano's is a twenty-fifth of it.

    python -m benchmarks.trial --work FOLDER    # benchmarks/results/trial.json; 4 GB of disk, 11 GB of memory, minutes

A checkpoint like 21B-A3B with two of its layers, one dense and one MoE, and random weights is built as int4, and
installed: as it is; with a ceiling of half the milliseconds that a token took; and with a policy that wants more
memory to stay free than does.  Of each it is told what the device said, how long it took, and how much memory the
device's processes held at most, the mapped weights included.  Such a checkpoint does not tell text from chance, so
the self-check is held to what the validated engine had on these tokens, with room for another processor.
What stands in the folder from an earlier run is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ernie_export import pipeline
from ernie_export.bundle.manifest import Manifest
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment
from ernie_export.validate.selfcheck import SelfCheck

RESULTS = Path(__file__).parent / "results" / "trial.json"
LAYERS = 2
HEADROOM = 0.99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    bundle = built(work)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        rows = [installed(Path(folder) / "as it is", bundle)]
        ceiling = rows[0]["tried"]["token_ms"] / 2
        rows.append(installed(Path(folder) / "ceiling", bundle, max_token_ms=ceiling))
        rows.append(installed(Path(folder) / "headroom", bundle, memory_headroom=HEADROOM))
    check = SelfCheck.read(bundle)
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.machine(),
        "load_average": os.getloadavg()[0],
        "software": environment.software(),
        "like": "21b",
        "layers": LAYERS,
        "vocabulary": json.loads((bundle / "config.json").read_text())["vocab_size"],
        "bundle_bytes": sum(entry.size for entry in Manifest.read(bundle).files.values()),
        "selfcheck_bytes": (bundle / SelfCheck.FILE).stat().st_size,
        "bounds": {name: asdict(bound) for name, bound in check.about.bounds.items()},
        "installations": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    refused = [row["exit_code"] for row in rows]
    print(*(json.dumps(row) for row in rows), sep="\n")
    sys.exit(refused != [0, 1, 1])


def built(work: Path) -> Path:
    checkpoint, bundle = work / "big", work / "big-int4"
    if not checkpoint.exists():
        command = ["synthesize", "--like", "21b", "--layers", str(LAYERS), "--output", str(checkpoint)]
        subprocess.run([sys.executable, "-m", "ernie_export", *command], check=True)
    return pipeline.build(checkpoint, Target.find("cpu"), Recipe.find("int4"), bundle).bundle


def installed(root: Path, bundle: Path, **limits: float) -> dict[str, Any]:
    """What `device install` does in an empty place under a policy with these limits."""
    root.mkdir()
    policy = {"unsigned": True, **limits}
    (root / "policy.toml").write_text(
        "".join(f"{name} = {json.dumps(value)}\n" for name, value in policy.items())
    )
    command = [
        sys.executable,
        "-m",
        "ernie_export",
        "device",
        "install",
        str(bundle),
        "--root",
        str(root),
        "--json",
    ]
    begun = time.perf_counter()
    with (root / "out").open("w+") as out, (root / "err").open("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "policy": policy,
        "exit_code": code,
        "said": (root / "err").read_text().strip(),
        "seconds": round(time.perf_counter() - begun, 2),
        "highest_memory_bytes": usage.ru_maxrss
        * 1024,  # of it and of the processes that it started, the highest
        "tried": None if code else json.loads((root / "out").read_text())["tried"],
    }


if __name__ == "__main__":
    main()
