from __future__ import annotations

import pytest

from ernie_export.plan import machine


def test_memory_is_no_more_than_a_container_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"/sys/fs/cgroup/memory.max": "1000000\n", "/sys/fs/cgroup/memory.current": "300000\n"}
    monkeypatch.setattr(machine, "_read", lambda path: limits.get(path, ""))
    assert machine.memory() == (1_000_000, 700_000)


def test_bandwidth_is_that_of_memory_and_not_of_a_cache() -> None:
    measured = machine.bandwidth()
    assert measured is not None and 1e9 < measured < 2e12


def test_bandwidth_is_unknown_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (8 << 30, machine.READ))
    assert machine.bandwidth() is None
