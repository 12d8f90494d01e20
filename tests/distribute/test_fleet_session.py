"""docs/fleet.md is true: its commands answer what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distribute.fleet_session import BLOCK, DOCUMENT, comparable, replayed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_session_runs_as_it_is_written(tmp_path: Path) -> None:
    written = DOCUMENT.read_text("utf-8")
    assert comparable(replayed(written, tmp_path)) == comparable(written)


def test_the_session_shows_what_it_is_there_for() -> None:
    """Signed, pushed, installed twice, rolled back, refused."""
    blocks = "\n".join(BLOCK.findall(DOCUMENT.read_text("utf-8")))
    for words in (
        "is signed by release.key",
        "signed by release",
        "installed",
        "generation 1 is active again",
        "left out",
        "did not arrive as the manifest lists it",
    ):
        assert words in blocks, words
    assert blocks.count("generation 1 is active again") >= 2  # deployed, and from the registry
    assert blocks.count("(exit code 1)") == 3
