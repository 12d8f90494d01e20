"""Which lines of the CUDA kernels do their tests run?

    python benchmarks/kernel_coverage.py [--output FILE]

Builds the emulated kernels with gcc's line counters, runs tests/plugins with them in place of every other build,
and writes benchmarks/results/kernel_coverage.json: lines of code of each file, and those that never ran.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "plugins" / "kernels"
RESULT = ROOT / "benchmarks" / "results" / "kernel_coverage.json"
#: What needs no kernel of ours, and what only a sanitizer makes worth its time.
LEFT_OUT = "not true_size and not compiled and not emulation and not coverage and not mutants"


def output_of(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def counts(folder: Path) -> dict[str, dict[int, int]]:
    """file of KERNELS → line → how often it ran, in any instance of its template."""
    found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for data in folder.rglob("*.gcda"):
        for line in output_of("gcov", "--json-format", "--stdout", data).splitlines():
            for file in json.loads(line)["files"]:
                path = (folder / file["file"]).resolve()
                if path.parent == KERNELS:
                    for row in file["lines"]:
                        found[path.name][row["line_number"]] += row["count"]
    return found


def measured() -> dict[str, Any]:
    """file → {"lines": how many hold code, "missed": which of them never ran}"""
    folder = Path(output_of(sys.executable, "plugins/build.py", "coverage").strip())
    for data in folder.rglob("*.gcda"):
        data.unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {f"ERNIE_KERNELS_{flavour}": str(folder) for flavour in ("PLAIN", "ADDRESS", "THREAD")}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    output_of(*command, "tests/plugins", environment=environment)
    return {
        name: {"lines": len(lines), "missed": sorted(line for line, count in lines.items() if count == 0)}
        for name, lines in sorted(counts(folder).items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    print("Building, and running the tests: some minutes", flush=True)
    result = measured()
    rows = ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in result.items())
    arguments.output.write_text(f"{{\n{rows}\n}}\n")
    total, missed = (
        sum(map(of, result.values())) for of in (lambda r: r["lines"], lambda r: len(r["missed"]))
    )
    print(f"{total - missed} of {total} lines: {arguments.output}")


if __name__ == "__main__":
    main()
