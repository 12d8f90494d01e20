"""How long the CUDA kernels take to build for every SM, from nothing, on this machine.

    python benchmarks/kernels_build.py [--output FILE]

Writes benchmarks/results/kernels_build.json: seconds, cores, nvcc's version, SMs, and the library's size.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULT = ROOT / "benchmarks" / "results" / "kernels_build.json"


def measured() -> dict[str, Any]:
    from benchmarks.kernels_compiled import nvcc_version, sources_digest
    from plugins.build import build

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        build("cuda", Path(folder))
        seconds = time.perf_counter() - started
        cache = (Path(folder) / "CMakeCache.txt").read_text()
        size = (Path(folder) / "libernie_kernels.so").stat().st_size
    sms = re.search(r"^ERNIE_SM:\w+=(.*)$", cache, re.MULTILINE)
    assert sms
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "cores": len(os.sched_getaffinity(0)),
        "nvcc": nvcc_version(),
        "sms": sms[1].split(";"),
        "library_bytes": size,
        "sources": sources_digest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.output.write_text(json.dumps(measured(), indent=2) + "\n")
    print(arguments.output.read_text())


if __name__ == "__main__":
    main()
