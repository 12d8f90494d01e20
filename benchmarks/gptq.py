"""What calibration gains: ernie-nano in 4 bits, rounded to nearest and by GPTQ, each build as it ships.

    python benchmarks/gptq.py            # writes benchmarks/results/gptq.json and prints the table

Both are measured against transformers on the held-out text; GPTQ was calibrated on the text that comes
along, which is none of it.  What is rounded to nearest is not built again: its rows are those of
benchmarks/results/quality.json, which must be of the same software.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import quality

from ernie_export.recipe import Recipe
from ernie_export.validate import environment

RESULTS = Path(__file__).parent / "results" / "gptq.json"
METRICS = ("logits.kl_mean", "logits.kl_p99", "logits.same_top1", "perplexity.ratio")


def pairs() -> list[tuple[Recipe, Recipe]]:
    """Each recipe rounded to nearest, and calibrated."""
    calibrated = Recipe.find("int4-gptq")
    nearest = [Recipe.find("int4"), *(quality.everywhere("int4", block) for block in (32, 64, 128))]
    return [
        (
            recipe,
            recipe.model_copy(update={"name": f"{recipe.name}-gptq", "calibration": calibrated.calibration}),
        )
        for recipe in nearest
    ]


def row(name: str, metrics: Mapping[str, Any], nearest: float) -> dict[str, Any]:
    of = metrics["logits.kl_mean"] / nearest
    return {"recipe": name, "kl_of_nearest": of, **{metric: metrics[metric] for metric in METRICS}}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| recipe | KL mean | of nearest | KL p99 | same top-1 | perplexity |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            "| {recipe} | {kl:.2g} | {of:.2f} | {p99:.2g} | {top1:.2%} | ×{ratio:.4f} |".format(
                recipe=r["recipe"],
                kl=r["logits.kl_mean"],
                of=r["kl_of_nearest"],
                p99=r["logits.kl_p99"],
                top1=r["logits.same_top1"],
                ratio=r["perplexity.ratio"],
            )
        )
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    measured = json.loads(quality.RESULTS.read_text())
    if measured["software"] != environment.software():
        raise SystemExit(f"{quality.RESULTS} was measured with other software: run quality.py first")
    plain = {found["recipe"]: found for found in measured["rows"]}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for nearest, calibrated in pairs():
            before = plain[nearest.name]
            report = quality.measure(calibrated, Path(name))
            rows.append(row(nearest.name, before, before["logits.kl_mean"]))
            rows.append(row(calibrated.name, report.metrics, before["logits.kl_mean"]))
            print("\n".join(table(rows[-2:]).splitlines()[-2:]), flush=True)
    notes = [note for note in report.notes if note.startswith("Calibrated")]
    result = {"checkpoint": report.checkpoint.model_dump(), "inputs": report.inputs.model_dump(),
              "calibration": notes, "software": report.software, "machine": report.machine,
              "rows": rows}  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
