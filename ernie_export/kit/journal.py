"""What an interrupted build had finished, so that the next run goes on there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ernie_export import atomic

FILE = "journal.json"


class Journal:
    """Results of stages by name; all of them are of one `key`: another one begins anew."""

    def __init__(self, folder: Path, key: dict[str, Any]):
        self._path, self._key = folder / FILE, key
        self._done = self._read()

    @property
    def finished(self) -> list[str]:
        return list(self._done)

    def result(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Of the stage; made and noted unless it stands."""
        if name not in self._done:
            self._done[name] = make()
            self._write()
        return self._done[name]

    def forget(self, name: str) -> None:
        """The next run makes it anew."""
        self._done.pop(name, None)
        self._write()

    def _write(self) -> None:
        content = {"key": self._key, "done": self._done}
        atomic.write(self._path, json.dumps(content, indent=1).encode())

    def _read(self) -> dict[str, dict[str, Any]]:
        """Nothing where it is missing, damaged or another build's."""
        try:
            content = json.loads(self._path.read_bytes())
            done = content["done"] if content["key"] == self._key else {}
        except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        whole = isinstance(done, dict) and all(isinstance(each, dict) for each in done.values())
        return done if whole else {}
