"""What a chat template may take: it comes with a download, and a sandbox bounds neither time nor memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0
MEMORY = 512 << 20
"""Bytes of address space."""
TEXT = 16 << 20
"""Characters of a rendered conversation; the longest context holds fewer."""
BITS = 100_000
"""Of a number; the work on one is a single step, which nothing can interrupt."""


class OverLimit(TemplateError):
    """The template takes too much."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which no single step of arithmetic can run on for ever."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = (
                left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            )
            if bits > BITS:
                raise OverLimit("it makes a number without end")
        return super().call_binop(context, operator, left, right)


@contextmanager
def limited() -> Iterator[None]:
    """The block has SECONDS and MEMORY.

    Raises:
        OverLimit: it takes more time.
        MemoryError: it takes more memory.
    """
    with _bounded_memory(), _bounded_time():
        yield


@contextmanager
def _bounded_time() -> Iterator[None]:
    """Looks at the clock at every line that runs: a template is Python code, whose loops have lines.

    The clock is this thread's own: on a busy machine a template that is right still has its time.
    """
    deadline = time.thread_time() + SECONDS

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > deadline:
            raise OverLimit(f"it does not come to an end within {SECONDS:.0f} seconds")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Bounds the address space of the process where the system can tell how much is in use."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    in_use = int(statm.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard, in_use + MEMORY) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
