"""What this machine has: its memory, how fast that is read, and operators that were built for its CPU."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

READ = 256 << 20
"""Bytes read to measure the bandwidth: more than caches hold."""
SECONDS = 0.3
NATIVE = Path(__file__).parents[1] / "engine" / "native" / "libernie_cpu.so"
"""`make native` builds it."""
SWITCH = "ERNIE_EXPORT_NATIVE"
"""An environment variable: `0` for none, or the path of another library."""
CPU_FLAGS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "f16c"}
CHUNK, HEAD = 128, 16
"""What those operators take: rows of a multiple of so many weights, heads a multiple of so many numbers wide."""


def memory() -> tuple[int, int]:
    """Bytes in all and free; within the limit of a container, where there is one."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, available = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    if found := re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo")):
        available = int(found[1]) * 1024
    if (limit := _read("/sys/fs/cgroup/memory.max").strip()).isdigit():
        used = int(_read("/sys/fs/cgroup/memory.current").strip() or 0)
        total = min(total, int(limit))
        available = min(available, max(int(limit) - used, 0))
    return total, available


def mapped() -> int:
    """Bytes of mapped files, weights above all, that this process has in memory: `memory` counts them as free."""
    found = re.search(r"RssFile:\s+(\d+) kB", _read("/proc/self/status"))
    return int(found[1]) * 1024 if found else 0


def bandwidth() -> float | None:
    """Bytes a second that all cores together read; None where there is no room to measure it."""
    import numpy as np

    if memory()[1] < 4 * READ:
        return None
    cores = len(os.sched_getaffinity(0))
    values = np.ones(READ // 8, np.uint64)
    parts = np.array_split(values, 4 * cores)
    best = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            begun = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            best = min(best, time.perf_counter() - begun)
    return READ / best


def native_operators() -> Path | None:
    """The library of native operators that can be loaded here."""
    said = os.environ.get(SWITCH, "")
    path = Path(said) if said not in ("", "0") else NATIVE
    return path if said != "0" and path.is_file() and cpu_flags() >= CPU_FLAGS else None


def cpu_flags() -> set[str]:
    """What the first core can do, as Linux names it."""
    lines = _read("/proc/cpuinfo").splitlines()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
