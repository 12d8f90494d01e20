"""A batch of sequences as runs of an engine: what every session does, whatever runtime is behind it.

Rows of one token each run together.  Rows of several run one by one, each on its own slice of the cache, and a
long one in pieces, so that what a run needs beside the cache does not grow with the prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.engine.interface import Fed, check_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class BatchSession(ABC):
    def __init__(self, batch: int, max_length: int, vocab_size: int, probes: Sequence[str], piece: int):
        """`piece`: most tokens of a row in one run."""
        self.max_length, self.vocab_size, self.probes, self.piece = max_length, vocab_size, probes, piece
        self.tokens: list[list[int]] = [[] for _ in range(batch)]

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.tokens]

    def truncate(self, row: int, length: int) -> None:
        del self.tokens[row][length:]

    def feed(
        self,
        rows: Sequence[Sequence[int]],
        all_logits: bool = False,
        given: Sequence[Mapping[str, Array]] = (),
    ) -> Fed:
        check_rows(rows, self.lengths, self.max_length, self.vocab_size)
        fed = Fed([np.empty((0, self.vocab_size), np.float32)] * len(rows), [{} for _ in rows])
        decoding = len(rows) > 1 and all(len(row) <= 1 for row in rows) and any(rows) and not given
        if decoding and all(row or tokens for row, tokens in zip(rows, self.tokens, strict=True)):
            # An idle row is fed its last token again, at its own place: the same row of the cache is rewritten.
            again = [list(row) or tokens[-1:] for row, tokens in zip(rows, self.tokens, strict=True)]
            for row, tokens in zip(rows, self.tokens, strict=True):
                tokens += row
            logits, probes = self.run(range(len(rows)), again, all_logits, {})
            for index, row in enumerate(rows):
                if row:
                    fed.logits[index], fed.probes[index] = logits[index], at(probes, index)
            return fed
        for index, row in enumerate(rows):
            if row:
                values = given[index] if given else {}
                fed.logits[index], fed.probes[index] = self._feed_row(index, list(row), all_logits, values)
        return fed

    def _feed_row(
        self, slot: int, row: list[int], all_logits: bool, given: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Piece by piece: the logits asked for, and the probes of all tokens."""
        logits: list[Array] = []
        probes: list[dict[str, Array]] = []
        for begin in range(0, len(row), self.piece):
            span = slice(begin, begin + self.piece)
            self.tokens[slot] += row[span]
            values = {name: value[span] for name, value in given.items()}
            made, probed = self.run(range(slot, slot + 1), [row[span]], all_logits, values)
            logits = [*logits, made[0]] if all_logits else [made[0]]
            probes.append(at(probed, 0))
        if len(probes) == 1:
            return logits[0], probes[0]
        return np.concatenate(logits), {
            name: np.concatenate([each[name] for each in probes]) for name in self.probes
        }

    @abstractmethod
    def run(
        self, span: range, rows: list[list[int]], all_logits: bool, given: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Run the slots `span` of the batch on `rows`, equally long, whose tokens are already noted.

        Returns logits [rows, tokens or 1, V], and the probes.
        """


def at(probes: Mapping[str, Array], row: int) -> dict[str, Array]:
    return {name: value[row] for name, value in probes.items()}
