"""Where output goes: results to stdout, messages to stderr, each plain where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from ernie_export.progress import Progress, Silent

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType

PLAIN_WIDTH = 1000  # columns; output that is piped is never folded
CONTROL = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class Terminal:
    """Set up by the global options, used by every command."""

    quiet: bool = False

    def emit(self, result: BaseModel) -> None:
        """A result for a script: JSON on stdout."""
        print(result.model_dump_json())

    def show(self, result: RenderableType) -> None:
        """A result for a person, on stdout."""
        console = self.console(sys.stdout)
        with console.capture() as captured:
            console.print(result, markup=False, soft_wrap=isinstance(result, str))
        # The padding of a last column would only be in the way of who searches or copies.
        print("\n".join(line.rstrip() for line in captured.get().split("\n")), end="")

    def say(self, message: str) -> None:
        """A message beside the result, on stderr; nothing with --quiet."""
        if not self.quiet:
            print(message, file=sys.stderr)

    def write(self, text: str) -> None:
        """A piece of generated text, at once. A model cannot steer the terminal."""
        sys.stdout.write(text.translate(CONTROL) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Bars on stderr while the block runs; none with --quiet or where stderr is no terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield Silent()
            return
        from ernie_export.cli.bars import bars

        with bars(self.console(sys.stderr)) as progress:
            yield progress

    @staticmethod
    def console(stream: TextIO) -> Console:
        from rich.console import Console

        console = Console(file=stream, highlight=False)
        if not console.is_terminal:
            console.width = PLAIN_WIDTH
        return console


terminal = Terminal()


def facts(rows: Iterable[tuple[str, object]]) -> RenderableType:
    """Names and their values, one to a line."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return grid


def table(
    titles: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()
) -> RenderableType:
    """Rows below their titles; the columns of `right` are flush right."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for at, title in enumerate(titles):
        grid.add_column(title, justify="right" if at in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return grid


def coloured(text: str, good: bool) -> RenderableType:
    """Green or red where there is colour."""
    from rich.text import Text

    return Text(text, "green" if good else "bold red")


def dim(text: str) -> RenderableType:
    from rich.text import Text

    return Text(text, "dim")
