"""How a stage tells how far it is, without knowing who looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    def advance(self, amount: float = 1) -> None: ...


class Progress(Protocol):
    def step(self, title: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Step]:
        """Begin a piece of work of `total` units (None: unknown)."""
        ...


class _SilentStep:
    def advance(self, amount: float = 1) -> None:
        pass


class Silent:
    """Nobody looks."""

    @contextmanager
    def step(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
        yield _SilentStep()
