"""A terminal for a program that behaves otherwise where somebody looks."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Sequence

PROMPT = "› ".encode()


def in_a_terminal(code: str, typed: Sequence[bytes] = (), seconds: float = 60) -> str:
    """What a terminal is sent by this Python code; each of `typed` is typed when a prompt appears."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    sent, waiting, until = b"", list(typed), time.monotonic() + seconds
    try:
        while piece := _read(ours, until):
            sent += piece
            if waiting and sent.count(PROMPT) > len(typed) - len(waiting):
                os.write(ours, waiting.pop(0))
    finally:
        os.close(ours)
        process.kill()  # no effect on one that has ended
        code_of_exit = process.wait()
    assert code_of_exit == 0 and not waiting, sent.decode()
    return sent.decode()


def _read(terminal: int, until: float) -> bytes:
    """The next bytes; none when the program has ended, or the time is over."""
    if not select.select([terminal], [], [], max(until - time.monotonic(), 0))[0]:
        return b""
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""
