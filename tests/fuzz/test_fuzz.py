"""Without the fuzzer: seeds, what was found once, and mutations of the seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz import harness as harnesses
from tests.fuzz.harness import Harness
from tests.fuzz.json_mutation import mutate

MUTATIONS = 60
"""Of all seeds of a harness together."""
FOUND = [
    pytest.param(name, path, id=f"{name}-{path.name}")
    for name in harnesses.names()
    for path in harnesses.regressions(name)
]


@pytest.mark.parametrize("name", harnesses.names())
def test_seeds_and_their_mutations_are_read_or_refused(name: str, tmp_path: Path) -> None:
    harness = harnesses.load(name)
    source = random.Random(7)
    seeds = list(harness.seeds())
    for seed in seeds:
        for data in (seed, *islice(mutations(harness, seed, source), MUTATIONS // len(seeds))):
            harnesses.run(harness, data, tmp_path)


@pytest.mark.parametrize("name", harnesses.names())
def test_a_seed_is_read_whole(name: str, tmp_path: Path) -> None:
    """A harness whose every seed is refused would test nothing behind the first check."""
    harness = harnesses.load(name)
    harness.parse(next(iter(harness.seeds())), tmp_path)


@pytest.mark.parametrize(("name", "path"), FOUND)
def test_what_was_found_once_is_refused(name: str, path: Path, tmp_path: Path) -> None:
    harnesses.run(harnesses.load(name), path.read_bytes(), tmp_path)


def test_regressions_belong_to_harnesses() -> None:
    assert {path.name for path in harnesses.REGRESSIONS.iterdir()} <= set(harnesses.names())


def mutations(harness: Harness, seed: bytes, source: random.Random) -> Iterator[bytes]:
    while True:
        data = (harness.JSON and mutate(seed, source, 1 << 16)) or bytearray(seed)
        if isinstance(data, bytearray) and data:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        yield bytes(data)
