"""What a run comes to: the goals, and at most 40 lines that say all that matters."""

from __future__ import annotations

import math
from typing import Any

Rows = list[dict[str, Any]]
#: Of the dense fp16 rate, at 2,048 tokens.
PREFILL = {"90": 0.35, **dict.fromkeys(("80", "86", "87", "89"), 0.55)}
MOST_LINES = 40


def notes(result: dict[str, Any], section: str) -> Rows:
    return result["sections"].get(section, {}).get("notes", [])


def ceilings(result: dict[str, Any]) -> dict[str, float]:
    return next((row for row in notes(result, "benchmark") if "copy_gb_s" in row), {})


def experts_at(result: dict[str, Any], tokens: int) -> dict[str, Any] | None:
    rows = [
        r for r in notes(result, "benchmark") if r.get("kernel") == "experts" and r.get("form") == "INT4 fp16"
    ]
    return next((row for row in rows if row["tokens"] == tokens), None)


def goals(result: dict[str, Any]) -> Rows:
    """What the kernels are meant to reach, and what they did; `met` is None where it was not measured."""
    found: Rows = []

    def goal(name: str, measured: float | None, wanted: float | None, least: bool, unit: str) -> None:
        met = None
        if measured is not None and wanted is not None and not result["emulated"]:
            met = measured >= wanted if least else measured <= wanted
        found.append(
            {"goal": name, "measured": measured, "wanted": wanted, "least": least, "unit": unit, "met": met}
        )

    one, ceiling = experts_at(result, 1), ceilings(result)
    wanted = one["bytes"] / (0.8 * ceiling["copy_gb_s"] * 1e3) + 4 if one and ceiling else None
    goal("experts, 1 token: bytes / 80 % of copy + 4 µs", one and one["microseconds"], wanted, False, "µs")
    for tokens in (8, 16):
        row = experts_at(result, tokens)
        goal(f"experts, {tokens} tokens: of copy bandwidth", row and 100 * row["of_copy"], 80, True, "%")
    row, part = experts_at(result, 2048), PREFILL.get(result.get("sm", ""))
    goal(
        "experts, 2048 tokens: of dense fp16", row and 100 * row["of_matmul"], part and 100 * part, True, "%"
    )
    goal("largest error of a kernel in fp16", worst(result, "fp16"), 2e-3, False, "")
    return found


def worst(result: dict[str, Any], dtype: str) -> float | None:
    """NaN where one was."""
    errors = [
        math.nan if r["error"] is None else r["error"]
        for r in notes(result, "check")
        if r["name"].endswith(dtype)
    ]
    return max(errors, key=lambda error: (math.isnan(error), error)) if errors else None


def number(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1e}" if not unit else f"{value:.1f} {unit}"


def table(result: dict[str, Any]) -> list[str]:
    """Decode and prefill, a line a kernel: µs, and the rate that counts."""
    lines: dict[str, dict[int, str]] = {}
    for row in notes(result, "benchmark"):
        if "form" in row and "bf16" not in row["form"]:
            few = row["tokens"] <= 16
            rate = f"{row['gb_s']:.0f}G" if few else f"{row['tflop_s']:.0f}T"
            name = f"{row['kernel']} {row['form']}".removesuffix(" fp16")
            lines.setdefault(name, {})[row["tokens"]] = f"{row['microseconds']:.0f}/{rate}"
        elif "peer" in row and "microseconds" in row:
            name = f"  {row['kernel'].split(' ')[0]}, {row['peer'].removeprefix('PyTorch, ')}"
            lines.setdefault(name, {})[row["tokens"]] = f"{row['microseconds']:.0f}"
    columns = sorted({tokens for cells in lines.values() for tokens in cells})
    head = "µs / GB/s (G) or TFLOP/s (T) at tokens:".ljust(44) + "".join(f"{c:>11}" for c in columns)
    rows = [
        name[:43].ljust(44) + "".join(f"{cells.get(c, ''):>11}" for c in columns)
        for name, cells in lines.items()
    ]
    return [head, *rows] if rows else []


def checks(result: dict[str, Any]) -> list[str]:
    rows = [row for row in notes(result, "check") if "passed" in row]
    failed = [row["name"] for row in rows if not row["passed"]]
    lines = [
        f"checks against float64: {len(rows) - len(failed)} of {len(rows)}; largest error "
        f"fp16 {number(worst(result, 'fp16'), '')}, bf16 {number(worst(result, 'bf16'), '')}"
    ]
    if failed:
        lines.append(f"  FAILED: {'; '.join(failed)[:200]}")
    for row in notes(result, "end_to_end"):
        if "median" in row:
            mark = "ok" if row["passed"] else "FAILED"
            lines.append(f"{row['name']}: {row['median']:.1e} against {row['against']} {mark}")
        elif row.get("name") == "text":
            lines.append(f"ernie-nano's text: {row['same']} of {row['of']} tokens as in fp32")
    for row in notes(result, "graph"):
        mark = "the same" if row["same"] else "DIFFERENT"
        took = f", {row['microseconds']:.0f} µs" if "microseconds" in row else ""
        lines.append(f"CUDA graph of {row['name']}: {mark}{took}")
    for row in notes(result, "sanitizer"):
        lines.append(
            f"compute-sanitizer: {row.get('tool', '')} {row.get('said') or row.get('not_run')}"[:150]
        )
    return lines


def summary(result: dict[str, Any]) -> list[str]:
    sections = ", ".join(f"{n} {s['status']} {s['seconds']:.0f} s" for n, s in result["sections"].items())
    about = [f"{result.get('card', 'no card')}", f"SM {result.get('sm')}", f"PyTorch {result.get('torch')}"]
    about += [f"driver {result.get('driver')}", str(result.get("nvcc"))]
    lines = [", ".join(about), f"kernels {result['sources'][:12]}; {sections}"]
    if result["emulated"]:
        lines.insert(0, "EMULATED: the kernels ran on the CPU; no time here means anything")
    lines += [f"  {n}: {s['failure']}"[:200] for n, s in result["sections"].items() if s.get("failure")]
    lines += checks(result)
    if ceiling := ceilings(result):
        rates = f"copy {ceiling['copy_gb_s']:.0f} GB/s, fp16 {ceiling['matmul_tflop_s']:.0f} TFLOP/s"
        lines.append(f"ceilings of this card: {rates}")
    for goal in result["goals"]:
        sign, met = ("≥", "≤")[not goal["least"]], {True: "met", False: "MISSED", None: "open"}[goal["met"]]
        measured, wanted = number(goal["measured"], goal["unit"]), number(goal["wanted"], goal["unit"])
        lines.append(f"goal {met:>6}: {goal['goal']}: {measured} {sign} {wanted}")
    lines += table(result)
    return lines[: MOST_LINES - 1]
