"""What is stored of `make kernel-mutants`: enough was tried, enough was found, and what was not is explained."""

from __future__ import annotations

from benchmarks.kernel_mutants import COMMANDS, COMPILER, RANDOMS, RESULT, Results, mutants, stored

ALL = stored(RESULT)
ROWS = [row for row in ALL if row["found by"] != COMPILER]


def test_every_mutant_of_these_sources_was_tried() -> None:
    todo = mutants(RANDOMS, seed=1, rows=ALL)
    known = Results(RESULT, todo).change()
    assert [mutant for mutant in todo if mutant not in known] == [], "run `make kernel-mutants`"


def test_every_change_to_the_order_of_threads_was_found() -> None:
    assert not [row for row in ROWS if row["kind"] != "index or bound" and not row["found by"]]


def test_of_those_drawn_at_random_nearly_all_were_found() -> None:
    drawn = [row for row in ROWS if row["kind"] == "index or bound"]
    lived = [row for row in drawn if not row["found by"]]
    assert len(drawn) >= 85 and len(lived) <= len(drawn) // 20
    assert all(row["why"] for row in lived)


def test_each_says_by_what_it_was_found() -> None:
    assert {row["with"] for row in ROWS} <= COMMANDS.keys()
