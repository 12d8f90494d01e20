"""Every planted fault in every format: the gate that stops it, and the place that validation names.

    python -m benchmarks.faults            # writes benchmarks/results/faults.json and docs/faults.md
    python -m benchmarks.faults --fault "rows of a batch mixed up"   # one anew; what is there of others stays

Run it in the repository's root.  The faults are those of tests/validate, which plants them too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ernie_export.checkpoint import embedded
from ernie_export.recipe import Recipe
from tests.validate import fault_table
from tests.validate.fault import outcome, quick
from tests.validate.faults import CASES
from tests.validate.planting import assembled

RESULTS = Path(__file__).parent / "results" / "faults.json"


def rows(work: Path, names: Collection[str]) -> Iterator[dict[str, Any]]:
    nano, sound = embedded.folder(), dict[str, Path]()
    sample = quick(work)
    for number, (fault, name) in enumerate(CASES):
        if fault.name not in names:
            continue
        recipe = Recipe.find(name)
        if name not in sound:
            sound[name] = assembled(nano, recipe, work / name)
        with tempfile.TemporaryDirectory(prefix=f"{number}-", dir=work) as place:
            found = outcome(fault, recipe, sound[name], nano, Path(place), sample)
            told = found.place.replace(f"{place}/", "")
        yield {
            "fault": fault.name,
            "recipe": name,
            "gate": fault.gate,
            "gates": list(found.gates),
            "place": told,
            "right": found.right(fault),
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(dict.fromkeys(fault.name for fault, _ in CASES))
    parser.add_argument("--fault", nargs="+", default=every, choices=every, metavar="NAME", help="which; all")
    names = parser.parse_args().fault
    before = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    by_case = {(row["fault"], row["recipe"]): row for row in before}
    with tempfile.TemporaryDirectory() as work:
        for row in rows(Path(work), names):
            by_case[row["fault"], row["recipe"]] = row
            wrong = "" if row["right"] else "  WRONG"
            print(f"{row['fault']}, {row['recipe']}: {row['place']}{wrong}", flush=True)
    found = [by_case[fault.name, recipe] for fault, recipe in CASES if (fault.name, recipe) in by_case]
    stopped, right = sum(bool(row["gates"]) for row in found), sum(row["right"] for row in found)
    result = {"cases": len(found), "stopped": stopped, "right": right, "rows": found}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    fault_table.DOCUMENT.write_text(fault_table.render(found))
    print(f"{len(found)} cases, {stopped} stopped, {right} with the right place")
    return int(right < len(found))


if __name__ == "__main__":
    sys.exit(main())
