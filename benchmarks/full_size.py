"""The tables of docs/full-size.md, out of the results of the benchmarks that it names.

python -m benchmarks.full_size   # in the repository's root; writes the document
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.doc_table import markdown, with_table
from ernie_export.checkpoint import shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan.plan import plan
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.target import Target

RESULTS = Path(__file__).parent / "results"
PLANNED, CONTEXT = (
    ("jetson-agx-orin-64gb", "jetson-orin-nx-16gb", "jetson-orin-nano-8gb", "rtx-4090", "h100"),
    32768,
)
DOCUMENT = Path(__file__).parents[1] / "docs" / "full-size.md"


def plans() -> str:
    """No benchmark: what `plan` says today."""
    config, rows = ErnieConfig.read(shapes.folder("21b")), []
    for name in PLANNED:
        found = plan(config, Target.find(name), Recipe.find("int4"), "21b", CONTEXT)
        spare = found.available - found.needed
        fits = f"{size(spare)} to spare" if found.fits else f"no, {size(-spare)} too much"
        rate = found.traffic[0].tokens_per_second
        rows.append([name, size(found.needed), fits, f"{rate:.0f} tokens/s" if rate else ""])
    return markdown(["target", f"int4, {CONTEXT:,} tokens", "fits", "bandwidth allows"], rows)


def build_memory(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['layers']} layers",
            size(row["input_bytes"]),
            size(row["peak"]),
            f"{row['trace_seconds']:.0f} s",
            f"{row['weights_seconds']:.0f} s",
            f"{row['gb_per_second']:.2f} GB/s",
        ]
        for row in found["builds"]
    ]
    ours = markdown(["21B's shape", "checkpoint", "highest memory", "tracing", "weights", "of bf16"], rows)
    peers = [[row["peer"], size(row["peak"]), f"{row['times']:.1f}"] for row in found["peers"]]
    return ours + "\n\n" + markdown(["0.3B's shape", "highest memory", "times its checkpoint"], peers)


def kill_and_resume(found: dict[str, Any]) -> str:
    rows = [
        [
            f"killed ({found['killed']['signal']})",
            f"{found['killed']['seconds']:.0f} s",
            len(found["standing_when_killed"]),
        ],
        ["the same command again", f"{found['resumed']['seconds']:.0f} s", found["weight_files"]],
        ["beside it, never killed", f"{found['whole']['seconds']:.0f} s", found["weight_files"]],
    ]
    table = markdown([f"{found['layers']} layers", "took", "weight files then there"], rows)
    return f"{table}\n\n{len(found['kept'])} of the {len(found['standing_when_killed'])} files were kept as they were."


def full_size_validation(found: Any) -> str:
    rows = [
        [
            row["layers"],
            row["recipe"] + (", reference kept" if row["kept"] else ""),
            row["verdict"],
            size(row["peak_anonymous_bytes"]),
            f"{row['seconds']:.0f} s",
            f"{row['tokens']:,}",
        ]
        for row in found["rows"]
    ]
    return markdown(["layers", "recipe", "verdict", "highest memory", "took", "tokens"], rows)


def gptq_memory(found: dict[str, Any]) -> str:
    row = [found["layers"], f"{found['tokens']:,}", size(found["peak"]), size(found["planned"])]
    head = ["layers", "tokens", "highest memory", "planned", "a layer takes"]
    return markdown(head, [[*row, f"{found['seconds_a_layer']:.0f} s"]])


def long_context(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['tokens']:,}",
            "ours" if row["native_operators"] else "ONNX Runtime's",
            size(row["kv_cache"]),
            size(max(row["beside"], 0)),
            f"{row['prefill_seconds']:.1f} s",
            f"{1000 * row['token_seconds']:.1f} ms",
        ]
        for row in found["rows"]
    ]
    return markdown(["context", "operators", "KV cache", "beside it", "prompt", "a token then"], rows)


def llama_cpp(found: dict[str, Any]) -> str:
    (speed,) = found["speed"]
    kl = {row["name"].removeprefix("llama.cpp "): row["logits.kl_mean"] for row in found["quality"]}
    rows = [
        [
            name if name.startswith("int") else f"llama.cpp {name}",
            f"{model['bits_per_weight']:.2f}",
            f"{model['prefill']:.1f}",
            ", ".join(
                f"{each['decode']:.1f} ({each['bandwidth_before'] / 1e9:.0f}, {each['bandwidth_after'] / 1e9:.0f})"
                for each in model["rounds"]
            ),
            f"{kl[name]:.2g}",
        ]
        for name, model in speed["models"].items()
    ]
    head = [
        "format",
        "bits a weight",
        "prefill",
        "decode, each round (GB/s before, after)",
        "KL on ernie-nano",
    ]
    times = speed["times_the_better"]
    ours = next(model for model in speed["models"].values() if "share_of_bandwidth" in model)
    short, long = speed["decode_by_context"]
    slower, opened = long["seconds"] / short["seconds"], speed["opening"]
    lines = [
        f"The best round of each: prefill {times['prefill']:.1f} times the better of llama.cpp's, decode "
        f"{times['decode']:.2f} times.",
        f"Decode moves {ours['share_of_bandwidth']:.0%} of what was read beside it. A token behind "
        f"{long['context']:,} others takes {slower:.2f} times one behind {short['context']}.",
        f"Opening takes {opened['warm']['seconds']:.1f} s, cold {opened['cold']['seconds']:.1f} s; reading all its "
        f"files {opened['reading']:.0f} s.",
    ]
    return markdown(head, rows) + "\n\n" + "\n".join(lines)


TABLES: list[Callable[[Any], str]] = [
    build_memory, kill_and_resume, full_size_validation, gptq_memory, long_context, llama_cpp,
]  # fmt: skip


def written(document: str) -> str:
    document = with_table(document, "full_size.py", plans())
    for table in TABLES:
        found = json.loads((RESULTS / f"{table.__name__}.json").read_text())
        document = with_table(document, f"{table.__name__}.py", table(found))
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
