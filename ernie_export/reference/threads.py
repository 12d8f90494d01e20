"""How many threads a reference runs on."""

from __future__ import annotations

from typing import Any

SMALL = 100_000_000
"""Parameters below which a model runs on one thread: its operations are over before a second thread is
awake. Worse, where other work keeps the cores busy the threads wait for each other at every operation:
512 tokens of a model of 10 M parameters took 23 s on two threads of two busy cores, and 1.1 s on one."""


def run_on_one_thread(model: Any) -> None:
    """From now on, each run of the module; everything else keeps its number of threads."""
    import torch

    before: list[int] = []

    def begin(*_: Any) -> None:
        before.append(torch.get_num_threads())
        torch.set_num_threads(1)

    def end(*_: Any) -> None:
        torch.set_num_threads(before.pop())

    model.register_forward_pre_hook(begin)
    model.register_forward_hook(end, always_call=True)
