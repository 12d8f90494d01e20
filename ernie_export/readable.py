"""Numbers for a person."""

from __future__ import annotations

import re


def size(count: float) -> str:
    """A number of bytes: `1.2 GB`."""
    return _scaled(count, ("bytes", "kB", "MB", "GB", "TB"))


def bytes_of(text: str) -> int:
    """The inverse of `size`, also for binary units: `7.5 GB`, `16GiB`, `500000`.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b|b|bytes)?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"{text!r} is no size")
    number, unit, binary = found.groups()
    return round(
        float(number) * (1024 if binary else 1000) ** ("kmgt".index(unit.lower()) + 1 if unit else 0)
    )


def count(number: float) -> str:
    """A number of things: `21.8 B` for 21.8 · 10⁹."""
    return _scaled(number, ("", "K", "M", "B", "T"))


def duration(seconds: float) -> str:
    """`0:07`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    """Three digits and the first unit in which they are below a thousand."""
    for unit in units:
        if number < 999.5 or unit == units[-1]:
            break
        number /= 1000
    digits = f"{number:.0f}" if unit == units[0] or number >= 99.95 else f"{number:.3g}"
    return f"{digits} {unit}".rstrip()
