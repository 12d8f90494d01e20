"""The option that writes docs/refusals.md anew."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-refusals", action="store_true", help="write docs/refusals.md instead of checking it"
    )
