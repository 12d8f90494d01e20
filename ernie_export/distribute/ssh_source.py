"""A bundle's files from who deploys it, as the device receives them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ernie_export.bundle.manifest import FileEntry
from ernie_export.digest import pieces
from ernie_export.distribute.ssh_messages import Want
from ernie_export.errors import WorkError
from ernie_export.progress import Step

SMALL = 256 << 10
"""Bytes read at a time: progress shows on a slow line too."""


class SshSource:
    """Implements `blobs.Source`. Several files are wanted at a time, so that the line is never idle."""

    def __init__(self, line: BinaryIO, tell: Callable[[Want], None]):
        self._line = line
        self._tell = tell
        self._turns = threading.Condition()
        self._wanted, self._arrived = 0, 0
        self._broken: BaseException | None = None

    def fetch(self, path: str, entry: FileEntry, to: Path, step: Step) -> int:
        """What stands at `to` is the beginning of the file, and is not wanted again.

        Raises:
            WorkError: the connection ended, or what came is not the file that the manifest lists.
        """
        with to.open("a+b") as file:
            file.truncate(min(file.tell(), entry.size))
            file.seek(0)
            state = hashlib.sha256()
            for piece in pieces(file):
                state.update(piece)
            start = file.tell()
            step.advance(start)
            if start < entry.size:
                with self._turn(Want(path=path, start=start)):
                    for arrived in self._pieces(entry.size - start):
                        state.update(arrived)
                        file.write(arrived)
                        step.advance(len(arrived))
            file.flush()
            os.fsync(file.fileno())
        if state.hexdigest() == entry.sha256:
            return entry.size - start
        to.unlink()
        if start:  # what an earlier try left is at fault
            step.advance(-entry.size)
            return self.fetch(path, entry, to, step) + entry.size - start
        raise WorkError(
            f"{path} did not arrive as the manifest lists it",
            "It was changed where it comes from: look with `ernie-export verify` there, then deploy again.",
        )

    @contextmanager
    def _turn(self, want: Want) -> Iterator[None]:
        """Ask, and run the block when all that was asked for before has arrived."""
        with self._turns:
            self._tell(want)
            mine, self._wanted = self._wanted, self._wanted + 1
            self._turns.wait_for(lambda: self._arrived == mine or self._broken)
            if self._broken:  # where its bytes would begin on the line is not known any more
                raise self._broken
        try:
            yield
        except BaseException as error:
            self._broken = error
            raise
        finally:
            with self._turns:
                self._arrived += 1
                self._turns.notify_all()

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._line.read(min(SMALL, size))
            if not piece:
                raise WorkError(
                    "The connection ended before the bundle had arrived",
                    "Deploy again: it goes on where it stopped.",
                )
            size -= len(piece)
            yield piece
