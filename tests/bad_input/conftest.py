"""The option that writes docs/bad-input.md anew, and what its answers do not depend on."""

from __future__ import annotations

import pytest

from ernie_export.plan.machine import SWITCH


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-table", action="store_true", help="write docs/bad-input.md instead of checking it"
    )


@pytest.fixture(autouse=True)
def without_native_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's answers are those of machines that have none."""
    monkeypatch.setenv(SWITCH, "0")
