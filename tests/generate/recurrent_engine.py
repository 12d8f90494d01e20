"""A small engine in numpy, for what does not depend on a real one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ernie_export.engine.info import EngineInfo
from ernie_export.engine.interface import Fed
from ernie_export.errors import UserError


class RecurrentEngine:
    """The next token depends on every token before it and on their order."""

    def __init__(self, vocab_size: int = 50, max_context: int = 64):
        self.info = EngineInfo(
            runtime="numpy",
            graph="none",
            num_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=1,
            vocab_size=vocab_size,
            max_context=max_context,
            moe_layers=(),
            num_experts=0,
            experts_per_token=0,
        )
        self.table = np.random.default_rng(5).normal(size=(997, vocab_size)).astype(np.float32)
        self.fed: list[list[list[int]]] = []
        self.capacities: list[int] = []

    def start(self, batch: int = 1, max_length: int | None = None) -> RecurrentSession:
        self.capacities.append(max_length or self.info.max_context)
        return RecurrentSession(self, batch, self.capacities[-1])


class RecurrentSession:
    def __init__(self, engine: RecurrentEngine, batch: int, max_length: int):
        self.engine = engine
        self.max_length = max_length
        self.caches: list[list[int]] = [[] for _ in range(batch)]

    @property
    def lengths(self) -> list[int]:
        return [len(cache) for cache in self.caches]

    def feed(self, rows: Sequence[Sequence[int]], all_logits: bool = False) -> Fed:
        assert len(rows) == len(self.caches)
        self.engine.fed.append([list(row) for row in rows])
        logits = []
        for cache, row in zip(self.caches, rows, strict=True):
            out = []
            for token in row:
                if len(cache) == self.max_length:
                    raise UserError("The cache is full", "Feed less.")
                cache.append(token)
                out.append(self.engine.table[self._state(cache)])
            kept = out if all_logits else out[-1:]
            logits.append(np.array(kept, np.float32).reshape(-1, self.engine.info.vocab_size))
        return Fed(logits, [{} for _ in rows])

    def truncate(self, row: int, length: int) -> None:
        del self.caches[row][length:]

    @staticmethod
    def _state(cache: list[int]) -> int:
        state = 1
        for token in cache:
            state = (state * 31 + token + 1) % 997
        return state
