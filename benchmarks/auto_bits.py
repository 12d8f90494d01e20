"""What `bits = "auto"` gains: budgets between the recipes int4 and int8, built and measured beside both.

    python benchmarks/auto_bits.py      # writes benchmarks/results/auto_bits.json and prints the table

Each budget is also spent without measuring: 8 bits to the decoder layers from the first on, as far as
it goes.  Every build is of ernie-nano, the real one, run as it ships; its KL divergence is that of its
report, on text that neither the model nor the choice has seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from ernie_export import pipeline
from ernie_export.bits import choose
from ernie_export.checkpoint import embedded
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan.bits import groups, options, smallest, with_formats
from ernie_export.plan.memory import memory
from ernie_export.plan.plan import PROMPT
from ernie_export.plan.setting import Setting
from ernie_export.progress import Silent
from ernie_export.recipe import Parts, Recipe
from ernie_export.target import Target
from ernie_export.validate.report import Report

RESULTS = Path(__file__).parent / "results" / "auto_bits.json"
SHARES = (0.2, 0.4, 0.6, 0.8)
"""Of the way from what INT4 everywhere needs to what INT8 everywhere does."""
CPU = Target.find("cpu")
CONFIG = ErnieConfig.read(embedded.folder())
INT4 = Recipe.find("int4")


def setting(parts: Parts) -> Setting:
    return Setting(parts=parts, context=CONFIG.max_position_embeddings, batch=1, prompt=PROMPT)


def needs(parts: Parts) -> int:
    return memory(CONFIG, CPU, setting(parts)).peak


def from_the_first_layer(budget: int) -> Parts:
    """8 bits to embedding and head, then layer by layer, as long as the budget lasts."""
    parts = smallest(CONFIG, setting(INT4.parts)).parts
    for group in groups(CONFIG, INT4.parts):
        more = with_formats(CONFIG, parts, {group: options(INT4.parts.of(group.part))[0]})
        if needs(more) > budget:
            break
        parts = more
    return parts


def build(recipe: Recipe, folder: Path) -> Report:
    ungated = recipe.model_copy(update={"gates": {}})
    return pipeline.build(embedded.folder(), CPU, ungated, folder / recipe.name).report_data


def row(recipe: Recipe, how: str, budget: int | None, expected: float | None, folder: Path) -> dict[str, Any]:
    report = build(recipe, folder)
    weights = sum(path.stat().st_size for path in (folder / recipe.name / "weights").iterdir())
    made = {
        "how": how,
        "budget": budget,
        "needs": needs(recipe.parts),
        "weights_bytes": weights,
        "expected_kl": expected,
        **{name: report.metrics[name] for name in ("logits.kl_mean", "logits.same_top1", "perplexity.ratio")},
        "recipe": recipe.model_dump(mode="json", exclude_none=True, exclude={"gates"}),
    }
    print(table([made]).splitlines()[-1], flush=True)
    return made


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| bits | memory | weights | KL expected | KL measured | same top-1 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        expected = "" if r["expected_kl"] is None else f"{r['expected_kl']:.2g}"
        lines.append(
            f"| {r['how']} | {r['needs'] / 1e6:.1f} MB | {r['weights_bytes'] / 1e6:.1f} MB | {expected} "
            f"| {r['logits.kl_mean']:.2g} | {r['logits.same_top1']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    whole = {
        name: with_formats(
            CONFIG,
            INT4.parts,
            {group: options(INT4.parts.of(group.part))[at] for group in groups(CONFIG, INT4.parts)},
        )
        for at, name in enumerate(("int8", "int4"))
    }
    least, most = needs(whole["int4"]), needs(whole["int8"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            row(
                INT4.model_copy(update={"name": f"{form}-everywhere", "parts": parts}),
                f"{form} everywhere",
                None,
                None,
                folder,
            )
            for form, parts in reversed(whole.items())
        ]
        for share in SHARES:
            budget = round(least + share * (most - least))
            choice = choose(embedded.folder(), CPU, INT4, str(budget), Silent())
            auto = choice.recipe.model_copy(update={"name": f"auto-{share:.0%}".replace("%", "")})
            rows.append(row(auto, f"auto, {share:.0%} of the way", budget, choice.kl, folder))
            plain = INT4.model_copy(
                update={"name": f"first-{share:.0%}".replace("%", ""), "parts": from_the_first_layer(budget)}
            )
            rows.append(row(plain, f"first layers, {share:.0%}", budget, None, folder))
    result = {"sensitivity": choice.sensitivity.model_dump(mode="json"), "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
