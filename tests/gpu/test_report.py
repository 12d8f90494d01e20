"""The goals, and the lines that a run ends with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu import report


def row(tokens: int, microseconds: float, **more: Any) -> dict[str, Any]:
    measured = {"gb_s": 2000.0, "tflop_s": 100.0, "of_copy": 0.85, "of_matmul": 0.4, "bytes": 36.0e6}
    return {
        "kernel": "experts",
        "form": "INT4 fp16",
        "tokens": tokens,
        "microseconds": microseconds,
        **measured,
        **more,
    }


def result(**more: Any) -> dict[str, Any]:
    check = [{"name": f"linear {dtype}", "error": error, "limit": 1e-3, "passed": True}
             for dtype, error in (("fp16", 3e-4), ("bf16", 4e-3), ("fp16", 5e-4))]  # fmt: skip
    bench = [{"copy_gb_s": 3000.0, "matmul_tflop_s": 700.0}, row(1, 18.9), row(8, 150.0, of_copy=0.79), row(16, 250.0),
             row(2048, 900.0), {"kernel": "experts", "peer": "PyTorch, dequantize and matmul", "tokens": 1,
                                "microseconds": 2000.0}]  # fmt: skip
    sections = {"check": check, "benchmark": bench}
    made = {
        "card": "NVIDIA H100", "sm": "90", "torch": "2", "nvcc": "13", "sources": "0123456789abcdef", "emulated": False,
        "sections": {name: {"status": "passed", "seconds": 1.0, "notes": notes} for name, notes in sections.items()},
    }  # fmt: skip
    made |= more
    made["goals"] = report.goals(made)
    return made


def test_goals() -> None:
    one, eight, sixteen, prefill, error = report.goals(result())
    assert one["wanted"] == pytest.approx(36e6 / (0.8 * 3000e9) * 1e6 + 4) and one["met"] is True
    assert eight["met"] is False and sixteen["met"] is True
    assert (prefill["measured"], prefill["wanted"], prefill["met"]) == (40, 35, True)
    assert (error["measured"], error["met"]) == (5e-4, True)
    assert report.goals(result(sm="89"))[3]["met"] is False
    assert report.goals(result(sm="120"))[3]["met"] is None


def test_a_result_that_is_no_number_is_the_worst() -> None:
    of = result()
    of["sections"]["check"]["notes"][0]["error"] = None
    goal = report.goals(of)[4]
    assert goal["measured"] != goal["measured"] and goal["met"] is False


def test_what_was_not_measured_is_open() -> None:
    assert [goal["met"] for goal in report.goals(result(sections={}))] == [None] * 5


def test_lines() -> None:
    lines = report.summary(result())
    text = "\n".join(lines)
    assert "goal    met: experts, 1 token: bytes / 80 % of copy + 4 µs: 18.9 µs ≤ 19.0 µs" in lines
    assert "goal MISSED: experts, 8 tokens: of copy bandwidth: 79.0 % ≥ 80.0 %" in lines
    assert "checks against float64: 3 of 3; largest error fp16 5.0e-04, bf16 4.0e-03" in lines
    assert "ceilings of this card: copy 3000 GB/s, fp16 700 TFLOP/s" in lines
    assert "19/2000G" in text and "900/100T" in text and "  experts, dequantize and matmul" in text


def test_at_most_forty_lines() -> None:
    notes = [row(1, 2.0, kernel=f"kernel {number}") for number in range(60)]
    long = result()
    long["sections"]["benchmark"]["notes"] += notes
    long["sections"]["check"] |= {"status": "failed", "failure": "AssertionError: 3 checks failed"}
    lines = report.summary(long)
    assert len(lines) < report.MOST_LINES
    assert "  check: AssertionError: 3 checks failed" in lines
