from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_export.readable import bytes_of, count, duration, size


@pytest.mark.parametrize(
    ("bytes", "text"),
    [
        *((0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_600, "1 MB")),
        *((19_700_000, "19.7 MB"), (43.6e9, "43.6 GB"), (2e12, "2 TB"), (5e15, "5000 TB")),
    ],
)
def test_size(bytes: float, text: str) -> None:
    assert size(bytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(12, "12"), (1536, "1.54 K"), (9.85e6, "9.85 M"), (21.83e9, "21.8 B")]
)
def test_count(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("text", "bytes"),
    [
        ("8 GB", 8 * 10**9),
        ("1.5gib", 3 << 29),
        ("12 kB", 12_000),
        ("7", 7),
        ("7 bytes", 7),
        (" 2TB ", 2 * 10**12),
    ],
)
def test_a_size_is_read(text: str, bytes: int) -> None:
    assert bytes_of(text) == bytes


@pytest.mark.parametrize("text", ["", "GB", "-1 GB", "1e3", "8 G", "8 GB GB", "1,5 GB", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        bytes_of(text)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e14))
def test_three_digits_are_kept(number: float) -> None:
    digits, unit = size(number).split()
    scale = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert abs(float(digits) * scale - number) <= max(0.005 * number, 0.5)
