from __future__ import annotations

from ernie_export.nearest import did_you_mean


def test_a_near_word_is_proposed_and_a_far_one_is_not() -> None:
    assert did_you_mean("shraed", ["dense", "shared"]) == "Did you mean shared? Known: dense, shared."
    assert did_you_mean("xyz", ["dense", "shared"]) == "Known: dense, shared."
