"""Progress bars with rate and time left, for work that takes more than two seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING

from ernie_export.progress import Progress, Step
from ernie_export.readable import duration, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import Task, TaskID

PATIENCE = 2.0  # seconds of work before anything is shown
BYTES = ("B", "bytes")


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """A bar for each step that is under way in the block; a finished one leaves no trace."""
    shown = _columns(console)
    timer = Timer(PATIENCE, shown.start)
    timer.daemon = True
    timer.start()
    try:
        yield Bars(shown)
    finally:
        timer.cancel()
        timer.join()  # it may be about to show them
        shown.stop()


class Bars:
    """Implements `progress.Progress`. Steps may lie within steps."""

    def __init__(self, shown: RichProgress):
        self._shown = shown

    @contextmanager
    def step(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
        task = self._shown.add_task(title, total=total, unit=unit)
        try:
            yield Bar(self._shown, task)
        finally:
            self._shown.remove_task(task)


class Bar:
    def __init__(self, shown: RichProgress, task: TaskID):
        self._shown = shown
        self._task = task

    def advance(self, amount: float = 1) -> None:
        self._shown.advance(self._task, amount)


def _columns(console: Console) -> RichProgress:
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(amount(task.completed, task.total, task.fields["unit"]), "dim")

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(rate(task.speed, task.fields["unit"]), "dim")

    class Left(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            return Text(time_left(task.time_remaining, task.elapsed), "dim")

    bar = BarColumn(bar_width=30)
    title = TextColumn("{task.description}", markup=False)
    return RichProgress(
        SpinnerColumn(), title, bar, Amount(), Rate(), Left(), console=console, transient=True
    )


def amount(done: float, total: float | None, unit: str) -> str:
    """`12 / 28 layers`, `1.2 GB / 43.6 GB`; nothing where nothing is known."""
    if total is None and not done:
        return ""
    numbers = [done] if total is None else [done, total]
    if unit in BYTES:
        return " / ".join(map(size, numbers))
    return " / ".join(f"{number:,.0f}" for number in numbers) + f" {unit}".rstrip()


def rate(speed: float | None, unit: str) -> str:
    """`0.62 GB/s` of bytes; of other things the time left says enough."""
    return f"{size(speed)}/s" if speed and unit in BYTES else ""


def time_left(left: float | None, elapsed: float | None) -> str:
    """The time left, or else how long it has taken so far."""
    return duration(elapsed or 0) if left is None else f"{duration(left)} left"
