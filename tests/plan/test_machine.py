from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from ernie_export.plan import machine


def test_memory_is_no_more_than_a_container_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"/sys/fs/cgroup/memory.max": "1000000\n", "/sys/fs/cgroup/memory.current": "300000\n"}
    monkeypatch.setattr(machine, "_read", lambda path: limits.get(path, ""))
    assert machine.memory() == (1_000_000, 700_000)


def test_mapped_files_are_counted_once_they_are_read(tmp_path: Path) -> None:
    path, nbytes = tmp_path / "weights", 64 << 20
    path.write_bytes(bytes(nbytes))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        before = machine.mapped()
        assert sum(pages[:: mmap.PAGESIZE]) == 0
        assert 0.9 * nbytes < machine.mapped() - before < 1.5 * nbytes


def test_bandwidth_is_that_of_memory_and_not_of_a_cache() -> None:
    measured = machine.bandwidth()
    assert measured is not None and 1e9 < measured < 2e12


def test_bandwidth_is_unknown_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (8 << 30, machine.READ))
    assert machine.bandwidth() is None
