"""What is stored of `make kernel-mutants`: enough was tried, enough was found, and what was not is explained."""

from __future__ import annotations

from benchmarks.kernel_mutants import COMMANDS, COMPILER, RESULT, stored

ALL = stored(RESULT)
ROWS = [row for row in ALL if row["found by"] != COMPILER]


def test_every_change_to_the_order_of_threads_was_found() -> None:
    assert not [row for row in ROWS if row["kind"] != "index or bound" and not row["found by"]]


def test_of_those_drawn_at_random_nearly_all_were_found() -> None:
    drawn = [row for row in ROWS if row["kind"] == "index or bound"]
    lived = [row for row in drawn if not row["found by"]]
    assert len(drawn) >= 90 and len(lived) <= len(drawn) // 20
    assert all(row["with"] == "sanitizers" and row["why"] for row in lived)


def test_each_says_by_what_it_was_found() -> None:
    assert {row["with"] for row in ROWS} <= COMMANDS.keys()
