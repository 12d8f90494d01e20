"""How fast an engine reads prompts and writes tokens, at several lengths."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ernie_export.bench.memory import Highest

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine, Session
    from ernie_export.progress import Step

SEED = 0


@dataclass(frozen=True)
class Prefill:
    """A prompt into an empty cache, with the logits of its last token."""

    tokens: int
    seconds: float
    """To the first token; the fastest of the repeats."""
    tokens_per_second: float
    highest_anonymous: int
    """Bytes at most."""


@dataclass(frozen=True)
class Decode:
    """One token after another over a filled cache."""

    context: int
    """Tokens in the cache at the beginning."""
    tokens: int
    seconds: float
    """Of a token: the median."""
    fastest: float
    tokens_per_second: float
    """By the median."""


def prefill(
    engine: Engine, session: Session, lengths: Sequence[int], repeats: int, step: Step
) -> list[Prefill]:
    measured = []
    for length in lengths:
        times = []
        with Highest() as highest:
            for repeat in range(repeats):
                session.truncate(0, 0)
                times.append(feed(engine, session, length, repeat))
                step.advance(length)
        measured.append(
            Prefill(
                tokens=length,
                seconds=min(times),
                tokens_per_second=length / min(times),
                highest_anonymous=highest.anonymous,
            )
        )
    return measured


def decode(
    engine: Engine, session: Session, contexts: Sequence[int], tokens: int, step: Step
) -> list[Decode]:
    measured = []
    session.truncate(0, 0)
    for context in sorted(contexts):
        session.truncate(0, min(session.lengths[0], context))
        if missing := context - session.lengths[0]:
            feed(engine, session, missing, context)
            step.advance(missing)
        times = []
        for number in range(tokens):
            times.append(feed(engine, session, 1, number))
            step.advance()
        median = statistics.median(times)
        measured.append(
            Decode(
                context=context,
                tokens=tokens,
                seconds=median,
                fastest=min(times),
                tokens_per_second=1 / median,
            )
        )
    return measured


def feed(engine: Engine, session: Session, tokens: int, seed: int) -> float:
    """Seconds to feed random tokens: like a text's, they go to different experts."""
    ids = np.random.default_rng((SEED, tokens, seed)).integers(0, engine.info.vocab_size, tokens).tolist()
    begun = time.perf_counter()
    session.feed([ids])
    return time.perf_counter() - begun
