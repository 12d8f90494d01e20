"""Versions of software, compared number by number."""

from __future__ import annotations

import re


def is_version(version: str, of: str) -> bool:
    """Whether `version` is one of `of`: 11.4.0 is a "11", 1.13 is no "1.1", but a "1.1+"."""
    if of.endswith("+"):
        return numbers(version) >= numbers(of) and numbers(version)[:1] == numbers(of)[:1]
    return f"{version}.".startswith(f"{of}.")


def numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` → (2, 13, 0)."""
    release = re.match(r"[\d.]*", version)
    return tuple(int(number) for number in (release[0] if release else "").split(".") if number)
