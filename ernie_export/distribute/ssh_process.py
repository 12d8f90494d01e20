"""The ssh client as a process: lines come out of it, bytes go into it, and it ends when its block does."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from typing import IO, Self

from ernie_export.distribute.ssh_messages import LONGEST
from ernie_export.errors import UserError

PATIENCE = 10.0
"""Seconds that it has to end by itself, once the other end has said its last."""
ERRORS = 50
"""Lines of its stderr that are kept: the last ones."""


class SshProcess:
    def __init__(self, command: list[str]):
        """Raises UserError where there is no ssh client."""
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError as error:
            raise UserError("There is no ssh here", "Install OpenSSH's client (openssh-client).") from error
        self.sent = 0
        """Bytes that were given to it."""
        self._errors: deque[bytes] = deque(maxlen=ERRORS)
        # A daemon, and never waited for to the end: a master connection that stays may hold stderr open.
        self._hearing = threading.Thread(target=self._hear, args=(self._process.stderr,), daemon=True)
        self._hearing.start()

    def lines(self) -> Iterator[bytes]:
        """What the program over there says, until it ends."""
        assert self._process.stdout
        while line := self._process.stdout.readline(LONGEST):
            yield line

    def write(self, data: bytes | memoryview) -> None:
        """Raises BrokenPipeError once it has ended."""
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()
        self.sent += len(data)

    def terminate(self) -> None:
        self._process.terminate()

    @property
    def code(self) -> int:
        """Its exit code, after the block."""
        return self._process.returncode

    @property
    def errors(self) -> str:
        """The last lines of its stderr, after the block."""
        return b"".join(self._errors).decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended():
            self._process.terminate()
        if not self._ended():
            self._process.kill()
            self._process.wait()
        self._hearing.join(1)

    def _ended(self) -> bool:
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _hear(self, stderr: IO[bytes]) -> None:
        while line := stderr.readline(LONGEST):
            self._errors.append(line)
