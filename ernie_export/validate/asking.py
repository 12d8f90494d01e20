"""An engine is asked what a bundle's self-check knows, and how long it takes: numpy alone, wherever it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ernie_export.engine.compatibility import memory
from ernie_export.validate.probes import probe_names, routing_name
from ernie_export.validate.selfcheck import Answer, SelfCheck

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine

    Opener = Callable[[Sequence[str]], Engine]
    """Opens the engine so that it shows the named values."""

DECODED = 8
"""The last tokens of each prompt, which are fed one at a time."""


@dataclass(frozen=True)
class Tried:
    """What was seen of an engine on this device."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid", "ser_json_inf_nan": "strings"}

    open_s: float
    prefill_ms: float
    """A prompt of the self-check, less its last tokens, at the median."""
    token_ms: float
    """At the median."""
    memory_free: int
    """Bytes, while the engine was open and warm; the weights that it has mapped are none of them."""
    memory: int
    """Bytes that the device has."""
    metrics: dict[str, float]
    """Of the self-check; the names are those of gates."""


def tried(check: SelfCheck, opener: Opener) -> Tried:
    """The engine twice, one after the other: showing its routers, and then as it ships."""
    prompts = [[int(token) for token in row] for row in check.tokens]
    return _as_it_ships(check, prompts, _experts(check, prompts, opener), opener)


def _experts(
    check: SelfCheck, prompts: list[list[int]], opener: Opener
) -> list[dict[int, np.ndarray[Any, Any]]]:
    """By prompt and MoE layer, [S,k]."""
    layers = check.layers.tolist()
    if not layers:
        return [{} for _ in prompts]
    engine = opener(probe_names(layers))
    shown = [engine.start(1, len(prompt)).feed([prompt]).probes[0] for prompt in prompts]
    return [{layer: probes[routing_name(layer, "indices")] for layer in layers} for probes in shown]


def _as_it_ships(
    check: SelfCheck,
    prompts: list[list[int]],
    experts: list[dict[int, np.ndarray[Any, Any]]],
    opener: Opener,
) -> Tried:
    begun = time.perf_counter()
    engine = opener(())
    opened = time.perf_counter() - begun
    prefills, steps, answers = [], [], []
    for prompt, chosen in zip(prompts, experts, strict=True):
        session = engine.start(1, len(prompt))
        decoded = min(DECODED, len(prompt) - 1)
        begun = time.perf_counter()
        logits = [session.feed([prompt[:-decoded]], all_logits=True).logits[0]]
        prefills.append(time.perf_counter() - begun)
        for token in prompt[-decoded:]:
            begun = time.perf_counter()
            logits.append(session.feed([[token]]).logits[0])
            steps.append(time.perf_counter() - begun)
        answers.append(Answer(np.concatenate(logits), chosen))
    total, free = memory(engine.info)
    return Tried(
        open_s=opened,
        prefill_ms=1000 * float(np.median(prefills)),
        token_ms=1000 * float(np.median(steps)),
        memory_free=free,
        memory=total,
        metrics=check.metrics(answers),
    )
