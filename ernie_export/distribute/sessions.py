"""Uploads that were begun: where each goes on, remembered from one process to the next."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from ernie_export import atomic
from ernie_export.checkpoint.fingerprints import cache_folder


class Sessions:
    def __init__(self, folder: Path):
        self._folder = folder

    @classmethod
    def of_user(cls) -> Sessions:
        return cls(cache_folder() / "uploads")

    def known(self, key: str) -> str | None:
        try:
            return self._file(key).read_text()
        except (OSError, ValueError):
            return None

    def remember(self, key: str, place: str) -> None:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs a second upload, no more
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic.write(self._file(key), place.encode())

    def forget(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()
