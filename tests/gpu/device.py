"""The one place that knows whether there is a GPU: what else is here asks this."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Work = Callable[[], Any]


class Device(Protocol):
    emulated: bool
    torch: torch.device

    def about(self) -> dict[str, Any]:
        """card, sm, l2_bytes, memory_bytes."""
        ...

    def free_bytes(self) -> int: ...

    def seconds(self, work: Work, repeats: int = 20, warm: float = 0.03) -> float:
        """What `work` takes on the device: the median, behind `warm` seconds of it, for the clocks to rise."""
        ...

    def captured(self, work: Work) -> Work:
        """A CUDA graph of `work`: what replays it."""
        ...


class Gpu:
    emulated = False

    def __init__(self) -> None:
        self.torch = torch.device("cuda", torch.cuda.current_device())

    def about(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(self.torch)
        return {
            "card": found.name,
            "sm": f"{found.major}{found.minor}",
            "l2_bytes": getattr(found, "L2_cache_size", 64 << 20),
            "memory_bytes": found.total_memory,
            "multiprocessors": found.multi_processor_count,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.torch)[0]

    def seconds(self, work: Work, repeats: int = 20, warm: float = 0.03) -> float:
        end, done = time.monotonic() + warm, 0
        while done < 3 or time.monotonic() < end:
            work()
            torch.cuda.synchronize(self.torch)
            done += 1
        times = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            times.append((begin, end))
        torch.cuda.synchronize(self.torch)
        return statistics.median(begin.elapsed_time(end) for begin, end in times) / 1000

    def captured(self, work: Work) -> Work:
        side = torch.cuda.Stream(self.torch)
        side.wait_stream(torch.cuda.current_stream(self.torch))
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream(self.torch).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


class Emulated:
    """The emulated kernels on tensors of the CPU.  Times are there, and mean nothing."""

    emulated = True
    torch = torch.device("cpu")

    def about(self) -> dict[str, Any]:
        return {
            "card": "emulated",
            "sm": "none",
            "l2_bytes": 1 << 16,
            "memory_bytes": 1 << 30,
            "multiprocessors": 1,
            "torch": torch.__version__,
            "cuda": None,
        }

    def free_bytes(self) -> int:
        return 1 << 30

    def seconds(self, work: Work, repeats: int = 20, warm: float = 0.03) -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    def captured(self, work: Work) -> Work:
        work()
        return work
