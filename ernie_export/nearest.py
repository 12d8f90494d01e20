"""The word the user probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy: the nearest of the `known` words where one is near, then all of them."""
    import difflib

    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = f"Known: {', '.join(known)}."
    return f"Did you mean {near[0]}? {listed}" if near else listed
