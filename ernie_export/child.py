"""A process that ends with the one that started it, and one whose memory lies the same in every run."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PDEATHSIG = 1  # PR_SET_PDEATHSIG of Linux
_NOT_RANDOM = 0x0040000  # ADDR_NO_RANDOMIZE of Linux
_ASK = 0xFFFFFFFF


def die_with_parent() -> None:
    """However that ends: nothing of its work runs on."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def at_the_same_addresses() -> None:
    """Begin this program anew without random addresses, where the system allows it, as a container may not."""
    persona = ctypes.CDLL(None).personality
    persona.argtypes = [ctypes.c_ulong]
    before = persona(_ASK)
    if before & _NOT_RANDOM:
        return
    persona(before | _NOT_RANDOM)
    if persona(_ASK) & _NOT_RANDOM:
        os.execv(sys.executable, sys.orig_argv)
