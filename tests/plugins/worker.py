"""Calls the kernels' library in a process of its own, where a sanitizer may end it.

Started by emulated.py, with the sanitizer's runtime preloaded.  Reads pickled requests from standard
input, writes pickled answers to standard output.  Every array lies in memory of exactly its size, so
that AddressSanitizer sees the first byte outside it.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
from typing import Any

SCALARS = {"i32": ctypes.c_int32, "u64": ctypes.c_uint64, "f32": ctypes.c_float}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
NAN = b"\xff"


def place(data: bytes) -> int:
    address = libc.malloc(len(data))
    ctypes.memmove(address, data, len(data))
    return address


def structure_of(fields: list[tuple[str, str, Any]]) -> Any:
    """The struct of a launch function, its scalars filled in."""
    layout: list[tuple[str, Any]] = []
    for name, kind, _ in fields:
        layout.append((name, SCALARS.get(kind, ctypes.c_void_p)))
        if kind == "workspace":
            layout.append((f"{name}_bytes", ctypes.c_uint64))
    structure = type("Call", (ctypes.Structure,), {"_fields_": layout})()
    for name, kind, value in fields:
        if kind in SCALARS:
            setattr(structure, name, value)
    return structure


def workspace(library: ctypes.CDLL, function: str, structure: Any) -> int:
    needed = getattr(library, f"{function}_workspace")
    needed.restype = ctypes.c_uint64
    return int(needed(ctypes.byref(structure)))


def call(library: ctypes.CDLL, function: str, fields: list[tuple[str, str, Any]]) -> Any:
    """fields: (name, kind, value); kinds: those of SCALARS, `in` and `out` (bytes), `same` (the name of
    an array), `null`, `workspace` (how many bytes more than needed), which is two fields of the struct."""
    structure = structure_of(fields)
    held = {}
    for name, kind, value in fields:
        if kind in ("in", "out"):
            held[name] = place(value)
            setattr(structure, name, held[name])
    for name, kind, value in fields:
        if kind == "same":
            setattr(structure, name, held[value])
        if kind == "workspace":
            size = max(workspace(library, function, structure) + value, 0)
            held[name] = place(NAN * size)
            setattr(structure, name, held[name])
            setattr(structure, f"{name}_bytes", size)
    launch = getattr(library, function)
    launch.restype = ctypes.c_char_p
    message = launch(ctypes.byref(structure), None)
    outputs = {
        name: ctypes.string_at(held[name], len(value)) for name, kind, value in fields if kind == "out"
    }
    for address in held.values():
        libc.free(address)
    return message and message.decode(), outputs


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.ernie_emulation_counters.restype = ctypes.c_char_p
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    requests = sys.stdin.buffer
    while True:
        try:
            function, fields, (order, copies, seed) = pickle.load(requests)
        except EOFError:
            return
        library.ernie_emulation_configure(order, copies, ctypes.c_uint64(seed))
        message, outputs = call(library, function, fields)
        weight_bytes = ctypes.c_uint64()
        launches = library.ernie_emulation_counters(ctypes.byref(weight_bytes)).decode().splitlines()
        pickle.dump((message, outputs, weight_bytes.value, launches), answers)
        answers.flush()


if __name__ == "__main__":
    main()
