"""What every engine can do, whatever runtime is behind it.  A device imports this with numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

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
