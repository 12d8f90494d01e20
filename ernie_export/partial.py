"""A build that is under way: its files, and a journal of those that are finished and what they were made from.

A file is written beside its final name, synced, renamed in place, and then noted. A killed build
therefore goes on at the last finished file, and a file whose inputs changed is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ernie_export import atomic
from ernie_export.progress import Progress
from ernie_export.validate import environment


@dataclass(frozen=True)
class Made:
    """What a writer tells of the file that it wrote and synced."""

    sha256: str
    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 by name of what it was read from."""


class Work:
    """A partial build: its folder, and what its journal says is finished.

    `made_from` names the inputs of a file, each with a digest.
    """

    def __init__(self, partial: Path, progress: Progress):
        self.folder = partial / "bundle"
        self.folder.mkdir(exist_ok=True)
        self.progress = progress
        self.digests: dict[str, str] = {}
        """SHA-256 by path of every file of this build."""
        self._journal = partial / "journal.json"
        self._lock = threading.Lock()
        self._done = read_journal(self._journal)
        self._software = digest_of(environment.software())

    def stands(self, path: str, made_from: dict[str, str]) -> bool:
        """Whether a file is there as made from the same."""
        done, final = self._done.get(path), self.folder / path
        return bool(
            done
            and done["made_from"] == self._all_of(made_from)
            and final.is_file()
            and final.stat().st_size == done["size"]
        )

    def differs_in(self, path: str, made_from: dict[str, str]) -> str | None:
        """The first of its inputs in which the finished file is not what is wanted; None where there is none."""
        if path not in self._done:
            return None
        was, wanted = self._done[path]["made_from"], self._all_of(made_from)
        return next((name for name, digest in wanted.items() if was.get(name) != digest), None)

    def _all_of(self, made_from: dict[str, str]) -> dict[str, str]:
        """With the versions of the software."""
        return made_from | {"software": self._software}

    def forget(self, path: str) -> None:
        """Remove a file that is of no use any more, and its beginnings."""
        (self.folder / path).unlink(missing_ok=True)
        beside(self.folder / path).unlink(missing_ok=True)

    def make(self, path: str, made_from: dict[str, str], writer: Callable[[Path], Made]) -> dict[str, str]:
        """Make one file with `writer`, unless it stands; return the digests of what it was read from."""
        if not self.stands(path, made_from):
            final = self.folder / path
            final.parent.mkdir(exist_ok=True)
            made = writer(beside(final))
            os.rename(beside(final), final)
            atomic.sync(final.parent)
            done = {
                "made_from": self._all_of(made_from),
                "sha256": made.sha256,
                "size": final.stat().st_size,
                "sources": made.sources,
            }
            with self._lock:
                self._done[path] = done
                atomic.write(self._journal, json.dumps(self._done, indent=1, sort_keys=True).encode())
        self.digests[path] = self._done[path]["sha256"]
        return dict(self._done[path]["sources"])

    def make_bytes(self, path: str, data: bytes) -> None:
        """Make a small file; its content is its own key."""
        content = {"content": hashlib.sha256(data).hexdigest()}
        self.make(path, content, lambda target: put(target, data))

    def leave_only_what_was_made(self) -> None:
        """Remove what an earlier try with another recipe left in the folder."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in self.digests:
                path.unlink()


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """What a journal says is finished; nothing where it is missing or damaged, so that all is made anew."""
    try:
        done = json.loads(path.read_bytes())
        whole = all(
            [type(entry[key]) for key in ("sha256", "size", "made_from", "sources")] == [str, int, dict, dict]
            for entry in done.values()
        )
    except (FileNotFoundError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}
    return done if whole else {}


def beside(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.part")


def put(path: Path, data: bytes) -> Made:
    """Write and sync a file."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Made(hashlib.sha256(data).hexdigest())


def digest_of(*inputs: Any) -> str:
    """Of what JSON can say."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
