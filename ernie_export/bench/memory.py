"""What this process holds in memory, and at most while something runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

STATUS = Path("/proc/self/status")
EVERY = 0.01
"""Seconds between two samples."""


@dataclass(frozen=True)
class Held:
    """Bytes; from Linux's /proc, nothing elsewhere."""

    anonymous: int = 0
    """RssAnon: what is its own, and can only be swapped."""
    mapped: int = 0
    """RssFile: pages of files, which the system may drop at any time and read again."""


def held() -> Held:
    try:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    except OSError:
        return Held()
    anonymous, mapped = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return Held(anonymous=anonymous, mapped=mapped)


class Highest:
    """`with Highest() as highest`: the most that was held while the block ran, sampled."""

    def __init__(self) -> None:
        self.anonymous = self.mapped = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _sample(self) -> None:
        now = held()
        self.anonymous, self.mapped = max(self.anonymous, now.anonymous), max(self.mapped, now.mapped)

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._sample()

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()
