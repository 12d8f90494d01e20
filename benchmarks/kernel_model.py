"""What the CUDA kernels must move for a layer of the 21B, and the time that each target's memory allows for it.

    python benchmarks/kernel_model.py [--output FILE]

Bytes that cannot be saved: each weight of what is read once, activations and cache in and out, and what two launches
hand to one another.  What is read again from the L2 cache is not counted, nor the sums of the parts of a context,
which are joined (under 2 MB).  The time is bytes over the rated bandwidth: a bound, no measurement.  Of tokens that
choose experts evenly and on their own, E·(1 − (1 − k/E)^T) experts are read.
Writes benchmarks/results/kernel_model.json and the table in docs/kernels.md; needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.doc_table import markdown, with_table  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "kernel_model.json"
DOC = ROOT / "docs" / "kernels.md"
PUBLISHED = ROOT / "ernie_export" / "checkpoint" / "published" / "21b"
BLOCK = 128
DECODE, PREFILL, CONTEXTS = (1, 8, 16), (128, 512, 2048), (128, 4096, 32768)
#: Those that the table shows, and what it calls them.
SHOWN = {
    "jetson-agx-orin-64gb": "Orin",
    "jetson-thor-t5000": "Thor",
    "l4": "L4",
    "rtx-4090": "RTX 4090",
    "a100-80gb": "A100",
    "h100": "H100",
}


@dataclass(frozen=True)
class Work:
    """One call of a launch function, or of several for the same tokens.  Bytes; activations have 2 each."""

    operator: str
    of: str
    tokens: int
    context: int | None
    """Rows of the cache that each prompt ends with; None where there is no cache."""
    weights: float
    activations: float
    cache: float
    handed_over: float
    """Written by one launch and read by the next."""
    flops: float

    @property
    def bytes(self) -> float:
        return self.weights + self.activations + self.cache + self.handed_over


def matrix(rows: int, k: int, bits: int) -> float:
    """Bytes of codes and of fp16 scales."""
    return rows * k * bits / 8 + rows * k / BLOCK * 2


def distinct(experts: int, k: int, tokens: int) -> float:
    return experts * (1 - (1 - k / experts) ** tokens)


def routing(hidden: int, experts: int, k: int, tokens: int) -> Work:
    return Work(
        operator="MoERouting",
        of="router, fp32",
        tokens=tokens,
        context=None,
        weights=4 * experts * (hidden + 1),
        activations=tokens * (2 * hidden + k * (8 + 2)),
        cache=0,
        handed_over=2 * 4 * tokens * experts,
        flops=2 * tokens * experts * hidden,
    )


def chosen_experts(hidden: int, width: int, experts: int, k: int, bits: int, tokens: int) -> Work:
    of_one = matrix(2 * width, hidden, bits) + matrix(hidden, width, bits)
    return Work(
        operator="MoEExperts",
        of=f"experts, INT{bits}",
        tokens=tokens,
        context=None,
        weights=distinct(experts, k, tokens) * of_one,
        activations=tokens * (2 * 2 * hidden + k * (8 + 2)),
        cache=0,
        handed_over=2 * 2 * tokens * k * width,
        flops=2 * tokens * k * 3 * width * hidden,
    )


def linear(of: str, matrices: list[tuple[int, int]], bits: int, tokens: int) -> Work:
    """matrices: rows and K of each."""
    return Work(
        operator="QuantizedLinear",
        of=f"{of}, INT{bits}",
        tokens=tokens,
        context=None,
        weights=sum(matrix(rows, k, bits) for rows, k in matrices),
        activations=sum(2 * tokens * (rows + k) for rows, k in matrices),
        cache=0,
        handed_over=0,
        flops=sum(2 * tokens * rows * k for rows, k in matrices),
    )


def attention(heads: int, kv_heads: int, d: int, bits: int, prompts: int, tokens: int, context: int) -> Work:
    """tokens: of each prompt; the last of `context` rows."""
    row = kv_heads * 2 * (d * bits // 8 + (4 if bits == 8 else 0))
    seen = tokens * (context - tokens) + tokens * (tokens + 1) // 2
    return Work(
        operator="CachedAttention",
        of=f"attention, cache of {bits} bits",
        tokens=prompts * tokens,
        context=context,
        weights=0,
        activations=prompts * tokens * 2 * d * (2 * heads + 2 * kv_heads),
        cache=prompts * row * (context + tokens),  # the new rows are written, and all are read
        handed_over=0,
        flops=prompts * 4 * heads * d * seen,
    )


def works() -> list[Work]:
    from ernie_export.checkpoint.config import ErnieConfig

    c = ErnieConfig.read(PUBLISHED)
    h, kv, shared = c.hidden_size, c.num_key_value_heads * c.head_dim, c.shared_intermediate_size
    layers = {
        "attention's projections": [(h, h), (kv, h), (kv, h), (h, h)],
        "shared experts": [(shared, h), (shared, h), (h, shared)],
        "head": [(c.vocab_size, h)],
    }
    found: list[Work] = []
    for tokens in DECODE + PREFILL:
        found.append(routing(h, c.moe_num_experts, c.moe_k, tokens))
        for bits in (4, 8):
            found.append(chosen_experts(h, c.moe_intermediate_size, c.moe_num_experts, c.moe_k, bits, tokens))
            found += [linear(of, matrices, bits, tokens) for of, matrices in layers.items()]
    heads = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    for bits in (16, 8):
        found += [attention(*heads, bits, prompts, 1, context) for prompts in DECODE for context in CONTEXTS]
        found += [
            attention(*heads, bits, 1, tokens, context)
            for tokens in PREFILL
            for context in sorted({tokens, *(n for n in CONTEXTS if n > tokens)})
        ]
    return found


def bandwidths() -> dict[str, float]:
    """target → bytes a second."""
    from ernie_export.target import Target

    return {
        target.name: target.bandwidth.gb_per_s * 1e9
        for target in Target.all()
        if target.sm is not None and target.bandwidth is not None
    }


def model() -> dict[str, Any]:
    rates = bandwidths()
    rows = [
        {
            **{
                key: round(value) if isinstance(value, float) else value
                for key, value in asdict(work).items()
            },
            "bytes": round(work.bytes),
            "microseconds": {name: round(work.bytes / rate * 1e6, 2) for name, rate in rates.items()},
        }
        for work in works()
    ]
    return {"block_size": BLOCK, "bytes_a_second": rates, "rows": rows}


def text_of(result: dict[str, Any]) -> str:
    """A row on a line."""
    rows = ",\n".join("    " + json.dumps(row) for row in result["rows"])
    rates = json.dumps(result["bytes_a_second"])
    return f'{{\n  "block_size": {BLOCK},\n  "bytes_a_second": {rates},\n  "rows": [\n{rows}\n  ]\n}}\n'


#: As the recipe int4 has them.
FORMS = {
    "router, fp32",
    "experts, INT4",
    "attention's projections, INT8",
    "shared experts, INT4",
    "head, INT8",
}


def shown(row: dict[str, Any]) -> bool:
    if row["operator"] == "CachedAttention":
        return bool(row["tokens"] == 1 or (row["tokens"] == row["context"] and "16" in row["of"]))
    return row["of"] in FORMS and (row["operator"] == "MoEExperts" or row["tokens"] in (1, 16, 2048))


def table(result: dict[str, Any]) -> str:
    def line(row: dict[str, Any]) -> list[str]:
        context = "" if row["context"] is None else f"{row['context']:,}"
        times = [f"{row['microseconds'][name]:,.1f}" for name in SHOWN]
        sizes = [f"{row['bytes'] / 1e6:,.2f}", f"{row['flops'] / 1e6:,.0f}"]
        return [row["of"], f"{row['tokens']:,}", context, *sizes, *times]

    head = ["", "tokens", "context", "MB", "MFLOP", *SHOWN.values()]
    return markdown(head, map(line, filter(shown, result["rows"])))


def documented(document: str, result: dict[str, Any]) -> str:
    """The document with the table as it is now."""
    return with_table(document, "kernel_model.py", table(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    result = model()
    arguments.output.write_text(text_of(result))
    DOC.write_text(documented(DOC.read_text(), result))
    print(arguments.output)


if __name__ == "__main__":
    main()
