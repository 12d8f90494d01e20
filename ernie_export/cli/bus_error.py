"""A mapped file that is cut short while it is read: one line and an exit code, where the system would end the process.

Whoever reads a page that is gone gets SIGBUS, in the midst of a copy or a product.  Python's own handlers run
behind that instruction, which never ends; so this one is the C library's, and runs in the thread that reads.
It cannot go on from there: it tells what happened and leaves as a killed process does, after which every
stage goes on where it stopped.  Looking at a file before it is read would leave the time between the two.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from functools import cache

from ernie_export.errors import ErnieExportError, WorkError

SHOW_CURSOR = "\x1b[?25h\n"
"""What a progress bar would have written at its end."""


@cache
def tell_of_bus_errors() -> object:
    """From now on, for this process; what is returned must live as long."""
    if not hasattr(signal, "SIGBUS"):
        return None
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_tell)
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    return handler


def _tell(_: int) -> None:
    error = cause()
    bars = SHOW_CURSOR if sys.stderr.isatty() else ""
    os.write(2, f"{bars}error: {error}\n".encode(errors="replace"))
    os._exit(error.exit_code)


def cause() -> ErnieExportError:
    """The weight file of a checkpoint that is shorter than when it was mapped, if it is one of those."""
    checkpoint = sys.modules.get("ernie_export.checkpoint.safetensors")
    for file in list(checkpoint.MAPPED) if checkpoint else ():
        if file.is_cut_short():
            error: ErnieExportError = checkpoint.changed(file.path)  # type: ignore[union-attr]
            return error
    return WorkError(
        "A file of weights was cut short while it was read, or its disk fails",
        "Let nothing write to it, check it with `ernie-export verify`, and start again.",
    )
