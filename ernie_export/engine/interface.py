"""What every engine can do, whatever runtime is behind it.  A device imports this with numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.engine.info import EngineInfo


@dataclass
class Fed:
    """What came out of one `feed`, row by row."""

    logits: list[np.ndarray[Any, Any]]
    """[n, V] float32 each; n = tokens fed to the row with `all_logits`, else 1 (0 for an empty row)."""
    probes: list[dict[str, np.ndarray[Any, Any]]]
    """name → [tokens fed, …] each; empty unless the engine was opened with probes."""


class Session(Protocol):
    """A batch of sequences and their KV cache."""

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache, per row."""
        ...

    def feed(
        self,
        rows: Sequence[Sequence[int]],
        all_logits: bool = False,
        given: Sequence[Mapping[str, np.ndarray[Any, Any]]] = (),
    ) -> Fed:
        """Append `rows[b]` to row b (rows may differ in length, and be empty) and run the model.

        `given` holds for each row the values [tokens fed, …] that the engine was opened to be given.

        Raises:
            UserError: a row would outgrow the cache, or a token id is outside the vocabulary.
        """
        ...

    def truncate(self, row: int, length: int) -> None:
        """Forget what stands in the cache of `row` behind its first `length` tokens."""
        ...


class Engine(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    def start(self, batch: int = 1, max_length: int | None = None) -> Session:
        """An empty cache of `max_length` (default: the engine's whole context) for `batch` rows."""
        ...


def check_rows(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], max_length: int, vocab_size: int
) -> None:
    """That `feed` can take these rows over caches of these lengths; UserError where it cannot."""
    if len(rows) != len(lengths):
        raise ValueError(f"{len(rows)} rows were fed to a session of {len(lengths)}")
    for row, length in zip(rows, lengths, strict=True):
        if length + len(row) > max_length:
            raise UserError(
                f"{length + len(row)} tokens do not fit into a cache of {max_length}",
                "Shorten the prompt or the answer, or build with a larger `context` in the recipe.",
            )
        wrong = [token for token in row if not 0 <= token < vocab_size]
        if wrong:
            raise UserError(
                f"token id {wrong[0]} is outside the vocabulary of {vocab_size}",
                f"Token ids run from 0 to {vocab_size - 1}.",
            )
