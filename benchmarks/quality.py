"""What each format costs in quality: ernie-nano built in every one, measured against transformers.

    python benchmarks/quality.py            # writes benchmarks/results/quality.json and prints the table
    python benchmarks/quality.py --recipe int4-small   # one anew; what is there of others stays

Every build is the real one, run as it ships; each number is from its report.  What no CPU takes (fp8, nvfp4) is built
for a card, and its graph run here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

from ernie_export import pipeline
from ernie_export.checkpoint import embedded
from ernie_export.errors import UserError
from ernie_export.recipe import PartFormat, Parts, Recipe
from ernie_export.taken import require_taken
from ernie_export.target import Target
from ernie_export.validate.report import Report

RESULTS = Path(__file__).parent / "results" / "quality.json"
METRICS = (
    "logits.kl_mean", "logits.kl_p99", "logits.same_top1", "routing.agreement", "perplexity.ratio",
    "greedy.agreement", "logits.max_difference",
)  # fmt: skip


def recipes() -> list[Recipe]:
    shipped = [Recipe.find(name) for name in Recipe.names()]
    return shipped + [everywhere(name, block) for name in ("int8", "int4") for block in (32, 64, 128)]


def everywhere(name: str, block_size: int) -> Recipe:
    """One integer format in every part, embedding and head included."""
    part = PartFormat.model_validate({"format": name, "block_size": block_size})
    parts = Parts(experts=part, attention=part, shared=part, dense=part, head=part, embedding=part)
    return Recipe(name=f"{name}-everywhere-{block_size}", parts=parts)


def target_of(recipe: Recipe) -> Target:
    """The first that takes it: a CPU, else a card, whose graph is run on the CPU."""
    *some, last = map(Target.find, ("cpu", "rtx-4090", "rtx-5090"))
    for target in some:
        with contextlib.suppress(UserError):
            require_taken(target, recipe)
            return target
    return last


def measure(recipe: Recipe, folder: Path) -> Report:
    ungated = recipe.model_copy(update={"gates": {}})
    return pipeline.build(embedded.folder(), target_of(recipe), ungated, folder / recipe.name).report_data


def row(recipe: Recipe, folder: Path, report: Report) -> dict[str, object]:
    weights = sum(path.stat().st_size for path in (folder / recipe.name / "weights").iterdir())
    return {
        "recipe": recipe.name,
        "weights_bytes": weights,
        **{name: report.metrics[name] for name in METRICS},
    }


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| recipe | weights | KL mean | KL p99 | same top-1 | same experts | perplexity |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        lines.append(
            "| {recipe} | {mb:.1f} MB | {kl:.2g} | {p99:.2g} | {top1:.2%} | {experts:.2%} | ×{ratio:.4f} |".format(
                recipe=r["recipe"],
                mb=float(str(r["weights_bytes"])) / 1e6,
                kl=r["logits.kl_mean"],
                p99=r["logits.kl_p99"],
                top1=r["logits.same_top1"],
                experts=r["routing.agreement"],
                ratio=r["perplexity.ratio"],
            )
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [recipe.name for recipe in recipes()]
    parser.add_argument("--recipe", nargs="+", default=every, choices=every, help="which; all")
    names = parser.parse_args().recipe
    before = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    by_name = {found["recipe"]: found for found in before}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for recipe in recipes():
            if recipe.name in names:
                report = measure(recipe, folder)
                by_name[recipe.name] = row(recipe, folder, report)
                print(table([by_name[recipe.name]]).splitlines()[-1], flush=True)
    rows = [by_name[name] for name in every if name in by_name]
    result = {"checkpoint": report.checkpoint.model_dump(), "inputs": report.inputs.model_dump(),
              "software": report.software, "machine": report.machine, "rows": rows}  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
