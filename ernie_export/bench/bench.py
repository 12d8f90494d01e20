"""`bench`: speed, memory and opening of a bundle, beside what the memory's bandwidth would allow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ernie_export.bench import speed
from ernie_export.bench.memory import Held, held
from ernie_export.bench.opening import Opening, opening
from ernie_export.bundle.manifest import Manifest
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.open import open_engine
from ernie_export.errors import UserError
from ernie_export.plan import machine
from ernie_export.plan.setting import Setting
from ernie_export.plan.traffic import traffic
from ernie_export.progress import Progress
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment

PREFILL = (128, 512, 2048)
DECODE = (128, 1024, 4096)
TOKENS = 32
REPEATS = 3


@dataclass(frozen=True)
class Decode(speed.Decode):
    bytes: int
    """That one token must read: the weights it uses and the cache it finds."""
    bytes_per_second: float
    share: float | None
    """Of the bandwidth measured in the same run, or of the target's."""


class Bench(BaseModel):
    """What `ernie-export bench --json` prints. Bytes and seconds; GB are 10⁹."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    bundle: str
    recipe: str
    threads: int
    bandwidth: float | None
    """Bytes a second that the cores together read: the better of before and after."""
    opening: Opening
    cache: int
    """Tokens that the cache had room for."""
    memory: Held
    """At the end, with the cache."""
    prefill: list[speed.Prefill]
    decode: list[Decode]
    machine: dict[str, str | int]
    software: dict[str, str]


def bench(
    folder: Path,
    progress: Progress,
    prefill: Sequence[int] | None = None,
    decode: Sequence[int] | None = None,
    tokens: int = TOKENS,
    repeats: int = REPEATS,
    threads: int | None = None,
) -> Bench:
    """Measure the bundle; without lengths, at those of PREFILL and DECODE that its context holds.

    Raises:
        UserError: it is no bundle, or a length is beyond its context.
        WorkError: it does not open or run.
    """
    info = EngineInfo.read(folder)
    recipe, config = Recipe.read(folder / "recipe.toml"), ErnieConfig.read(folder)
    prompts = lengths(prefill, PREFILL, info.max_context)
    contexts = lengths(decode, DECODE, info.max_context - tokens)
    before = machine.bandwidth()
    with progress.step("Open, cold and warm"):
        opened = opening(folder, threads)
    work = repeats * sum(prompts) + max(contexts) + tokens * len(contexts)
    with progress.step("Prefill and decode", work, "tokens") as step:
        engine = open_engine(folder, threads=threads)
        cache = max(*prompts, max(contexts) + tokens)
        session = engine.start(1, cache)
        prefilled = speed.prefill(engine, session, prompts, repeats, step)
        decoded = speed.decode(engine, session, contexts, tokens, step)
        memory = held()
    target = _target(folder, info)
    if target.bandwidth:
        bandwidth: float | None = target.bandwidth.gb_per_s * 1e9
    elif target.needs_gpu:  # any: nobody tells
        bandwidth = None
    else:
        bandwidth = max((found for found in (before, machine.bandwidth()) if found), default=None)

    native = machine.native_operators() is not None

    def beside_bandwidth(each: speed.Decode) -> Decode:
        setting = Setting(parts=recipe.parts, context=each.context, batch=1, prompt=1, native=native)
        reads = traffic(config, target, setting, None)
        size = reads.bytes + reads.kv_cache
        rate = size / each.seconds
        share = rate / bandwidth if bandwidth else None
        return Decode(**asdict(each), bytes=size, bytes_per_second=rate, share=share)

    return Bench(
        bundle=folder.resolve().name,
        recipe=recipe.name,
        threads=threads or len(os.sched_getaffinity(0)),
        bandwidth=bandwidth,
        opening=opened,
        cache=cache,
        memory=memory,
        prefill=prefilled,
        decode=[beside_bandwidth(each) for each in decoded],
        machine=environment.machine(),
        software=environment.software(),
    )


def _target(folder: Path, info: EngineInfo) -> Target:
    """The manifest's; of a folder without one, any with its runtime."""
    with suppress(UserError):
        return Target.find(Manifest.read(folder).target)
    return next(target for target in Target.all() if target.runtime == info.runtime)


def lengths(asked: Sequence[int] | None, usual: Sequence[int], most: int) -> list[int]:
    """Those asked for, or the usual ones that fit, in order."""
    if not asked:
        return [length for length in usual if length <= most] or [most]
    if beyond := [length for length in asked if length > most]:
        raise UserError(
            f"{beyond[0]} tokens were asked for, this bundle's context leaves room for {most}",
            "Ask for fewer, or build with a larger `context` in the recipe.",
        )
    return sorted(set(asked))
