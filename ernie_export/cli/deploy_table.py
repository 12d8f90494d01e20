"""What is seen of a roll-out: a live table while it runs, and in the end what became of each device."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_export.cli.bars import amount
from ernie_export.cli.terminal import table, terminal
from ernie_export.readable import duration, size

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from ernie_export.distribute.ssh_messages import Step
    from ernie_export.distribute.ssh_rollout import Deployed, HostResult, Watch

BAR = 24
"""Columns."""
COLOURS = {"installed": "green", "already active": "green", "failed": "bold red", "left out": "yellow"}


@contextmanager
def watching(bundle: Path, hosts: Sequence[str], canaries: int) -> Iterator[Watch]:
    """A table on a terminal; elsewhere a line for each device that is done."""
    if terminal.quiet or not sys.stderr.isatty():
        yield Lines()
        return
    from rich.live import Live

    shown = LiveTable(str(bundle), hosts, canaries)
    with Live(shown, console=terminal.console(sys.stderr), refresh_per_second=8, transient=True):
        yield shown


class Lines:
    """Implements `ssh_rollout.Watch` where nobody looks."""

    def connecting(self, host: str) -> None:
        pass

    def step(self, host: str, step: Step) -> None:
        pass

    def ended(self, result: HostResult) -> None:
        why = f": {result.cause}" if result.cause else f" ({_facts(result)})"
        terminal.say(f"{result.host}: {result.outcome}{why}")


@dataclass
class _Row:
    state: str = "waiting"
    step: Step | None = None
    begun: float = 0.0
    result: HostResult | None = None

    @property
    def rank(self) -> int:
        """What is most worth seeing comes first, where not all has room."""
        if self.result:
            return 3 if self.result.well else 1
        return 0 if self.state != "waiting" else 2


class LiveTable:
    """Implements `ssh_rollout.Watch`, and is what rich shows."""

    def __init__(self, bundle: str, hosts: Sequence[str], canaries: int):
        self._bundle = bundle
        self._rows = {host: _Row() for host in hosts}
        self._canaries = set(hosts[:canaries])
        self._lock = threading.Lock()

    def connecting(self, host: str) -> None:
        with self._lock:
            self._rows[host] = _Row("connecting", begun=time.monotonic())

    def step(self, host: str, step: Step) -> None:
        with self._lock:
            row = self._rows[host]
            row.state, row.step = step.title.lower(), step

    def ended(self, result: HostResult) -> None:
        with self._lock:
            self._rows[result.host].result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=32)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, min_width=BAR)
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        with self._lock:
            rows = list(self._rows.items())
            yield self._title()
            room = (options.max_height or console.height) - 2
            if len(rows) > room:
                rows = sorted(rows, key=lambda named: named[1].rank)[:room]
            for host, row in rows:
                grid.add_row(*self._cells(host, row))
        yield grid

    def _title(self) -> RenderableType:
        from rich.text import Text

        results = [row.result for row in self._rows.values() if row.result]
        well = sum(result.well for result in results)
        count = f"{len(self._rows)} device{'s' * (len(self._rows) != 1)}"
        told = f"{self._bundle} to {count}: {well} done"
        if ill := len(results) - well:
            told += f", {ill} failed or left out"
        return Text(told, "bold")

    def _cells(self, host: str, row: _Row) -> tuple[RenderableType, ...]:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        name = Text(host)
        if host in self._canaries:
            name.append("  canary", "dim")
        if result := row.result:
            state = Text(result.outcome, COLOURS[result.outcome])
            bar = ProgressBar(1, 1, width=BAR) if result.well else Text("")
            return name, state, bar, Text(result.cause or _facts(result), "dim" if result.well else "")
        if row.state == "waiting":
            return name, Text("waiting", "dim"), Text(""), Text("")
        step, passed = row.step, duration(time.monotonic() - row.begun)
        if step and step.total:
            far = f"{amount(step.done, step.total, step.unit)}  {passed}"
            return name, Text(row.state), ProgressBar(step.total, step.done, width=BAR), Text(far, "dim")
        return name, Text(row.state), ProgressBar(total=None, pulse=True, width=BAR), Text(passed, "dim")


def summary(deployed: Deployed) -> RenderableType:
    """What became of each device, and what to do about it."""
    from rich.text import Text

    titles = ("device", "", "generation", "sent", "time", "")
    rows = [
        (
            f"{result.host} (canary)" if result.canary else result.host,
            Text(result.outcome, COLOURS[result.outcome]),
            result.generation or "-",
            size(result.sent),
            duration(result.seconds),
            f"{result.cause}. {result.remedy}" if result.cause else "",
        )
        for result in deployed.hosts
    ]
    return table(titles, rows, right=(2, 3, 4))


def _facts(result: HostResult) -> str:
    return f"generation {result.generation}, {size(result.sent)} sent, {duration(result.seconds)}"
