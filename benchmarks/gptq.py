"""What calibration gains: ernie-nano in 4 bits, rounded to nearest and by GPTQ, each build as it ships.

    python benchmarks/gptq.py            # writes benchmarks/results/gptq.json and prints the table

Both are measured against transformers on the held-out text; GPTQ was calibrated on the text that comes
along, which is none of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import quality

from ernie_export.recipe import Recipe

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


def table(rows: list[dict[str, object]]) -> str:
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
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        for pair in pairs():
            reports = [quality.measure(recipe, Path(name)) for recipe in pair]
            nearest = reports[0].metrics["logits.kl_mean"]
            for recipe, report in zip(pair, reports, strict=True):
                of = report.metrics["logits.kl_mean"] / nearest
                found = {metric: report.metrics[metric] for metric in METRICS}
                rows.append({"recipe": recipe.name, "kl_of_nearest": of, **found})
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    notes = [note for note in report.notes if note.startswith("Calibrated")]
    result = {"checkpoint": report.checkpoint.model_dump(), "inputs": report.inputs.model_dump(),
              "calibration": notes, "software": report.software, "machine": report.machine,
              "rows": rows}  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
