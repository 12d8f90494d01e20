"""The command line in a process of its own, where something happens to its files or its machine on the way.

    python -m tests.bad_input.meddling cut FILE SIZE AFTER …  # FILE is cut to SIZE bytes
    python -m tests.bad_input.meddling touch FILE AFTER …     # FILE is written to, as far as its time tells
    python -m tests.bad_input.meddling memory BYTES …         # so much is free

AFTER is a function, `module:name` or `module:Class.name`: it happens when that has been called. The rest is the
command line, with or without `python -m ernie_export` before it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def after(place: str, meddle: Callable[[], None]) -> None:
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    real = getattr(owner, last)

    def meddled(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        meddle()
        return result

    setattr(owner, last, meddled)


def main(words: list[str]) -> int:
    how, words = words[0], words[1:]
    if how == "cut":
        path, size, place, *words = words
        after(place, lambda: os.truncate(path, int(size)))
    elif how == "touch":
        path, place, *words = words
        after(place, lambda: os.utime(path))
    else:
        from ernie_export.plan import machine

        free, *words = words
        machine.memory = lambda: (int(free), int(free))
    if words[1:3] == ["-m", "ernie_export"]:
        words = words[3:]
    from ernie_export.cli import main as command_line

    return command_line(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
