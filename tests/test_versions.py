from __future__ import annotations

import pytest

from ernie_export.versions import is_version, numbers


@pytest.mark.parametrize(
    ("version", "of", "belongs"),
    [
        ("1.13", "1.1", False),
        ("1.1.0", "1.1", True),
        ("1.1", "1.1", True),
        ("1", "1.1", False),
        ("10.3", "1", False),
        ("1.32.1", "1.31+", True),
        ("1.31", "1.31+", True),
        ("1.30.9", "1.31+", False),
        ("2.0", "1.31+", False),
        ("11.0", "1.1+", False),
    ],
)
def test_versions_are_compared_number_by_number(version: str, of: str, belongs: bool) -> None:
    assert is_version(version, of) == belongs


def test_what_stands_behind_the_numbers_is_left_out() -> None:
    assert numbers("2.13.0+cpu") == (2, 13, 0)
    assert numbers("unknown") == ()
