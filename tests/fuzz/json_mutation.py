"""Changes to a JSON document that leave it JSON: mutated bytes alone seldom come past the parser."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

Slot = tuple[Any, Any]
"""A list or an object, and the index or key of one value in it."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 5e-324,
    math.nan, math.inf, -math.inf, "NaN", "Infinity", "-Infinity", "", "0", "a", "..", "../../etc/passwd", "/",
    "a/b", "a\\b", "\0", "\n", "\x1b[31m", "\u202e", "é", "漢", "\ud800", "<script>", "{{ 7 }}", "x" * 2000,
    [], {}, [[]], [None], {"": None}, [0] * 50,
)  # fmt: skip


def mutate(data: bytes, random_source: random.Random, longest: int) -> bytes | None:
    """The document with one to four changes; None where it is no document, or would outgrow `longest`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    root = [document]
    for _ in range(random_source.randint(1, 4)):
        slots = _slots(root)
        _change(random_source, *random_source.choice(slots), slots)
    try:
        text = json.dumps(root[0] if root else None, ensure_ascii=random_source.random() < 0.5)
        changed = text.encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return None
    return changed if len(changed) <= longest else None


def _slots(root: list[Any]) -> list[Slot]:
    found: list[Slot] = []
    left: list[Any] = [root]
    while left:
        inside = left.pop()
        keys = list(range(len(inside))) if isinstance(inside, list) else list(inside)
        found += [(inside, key) for key in keys]
        left += [inside[key] for key in keys if isinstance(inside[key], list | dict)]
    return found or [(root, 0)]


def _change(source: random.Random, inside: Any, key: Any, slots: list[Slot]) -> None:
    if isinstance(inside, list) and key >= len(inside):
        inside.append(source.choice(ODD))
        return
    kind = source.randrange(7)
    if kind == 0 and len(slots) > 1:
        del inside[key]
    elif kind == 1:
        other, other_key = source.choice(slots)
        if isinstance(other, dict) and other_key in other:
            inside[key] = copy.deepcopy(other[other_key])
    elif kind == 2 and isinstance(inside, dict):
        inside[source.choice(("", "a", "schema_version", key + "_", key.upper(), "\x1b", "é" * 300))] = (
            inside[key]
        )
    elif kind == 3 and isinstance(inside, list):
        inside.insert(key, copy.deepcopy(inside[key]))
    elif kind == 4 and isinstance(inside[key], int | float):
        inside[key] = source.choice((inside[key] + 1, inside[key] - 1, -inside[key], inside[key] * 1000))
    elif kind == 5 and isinstance(inside[key], str):
        inside[key] = source.choice(
            (inside[key][:-1], inside[key] * 2, inside[key] + "\0", inside[key].upper())
        )
    else:
        inside[key] = copy.deepcopy(source.choice(ODD))
