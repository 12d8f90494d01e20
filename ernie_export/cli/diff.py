"""`diff`: what has changed from one bundle to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.inspect import Json
from ernie_export.cli.terminal import table, terminal
from ernie_export.readable import size

if TYPE_CHECKING:
    from ernie_export.bundle.diff import Difference

LONGEST = 12
"""Files that are named; the rest are counted."""


def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A bundle.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another one.")],
    json: Json = False,
) -> None:
    """Show what has changed from one bundle to another: weights, formats, quality, versions, bytes to move."""
    from ernie_export.bundle.diff import diff

    with terminal.progress() as progress:
        found = diff(before, after, progress)
    if json:
        terminal.emit(found)
    elif found.same:
        terminal.show("the same bundle")
    else:
        _show(found)


def _show(found: Difference) -> None:
    from ernie_export.validate.report import HEADLINES, shown

    said = [(change.what, _short(change.before), _short(change.after)) for change in found.changes]
    parts = [
        (
            row.part,
            size(row.before),
            size(row.after),
            f"{row.changed} of {row.tensors}" if row.changed else "-",
        )
        for row in found.parts
        if row.changed
    ]
    quality = [
        (HEADLINES[row.name], shown(row.name, row.before), shown(row.name, row.after))
        for row in found.metrics
        if row.name in HEADLINES
    ]
    files: list[tuple[str, str, str]] = [
        (file.path, file.how, size(file.size)) for file in found.files[:LONGEST]
    ]
    if len(found.files) > LONGEST:
        rest = found.files[LONGEST:]
        files.append((f"and {len(rest)} more", "", size(sum(file.size for file in rest))))
    for titles, rows, right in (
        (("changed", "before", "after"), said, ()),
        (("weights", "before", "after", "tensors changed"), parts, (1, 2, 3)),
        (("quality", "before", "after"), quality, (1, 2)),
        (("file", "", "size"), files, (2,)),
    ):
        if rows:
            terminal.show(table(titles, rows, right))
            terminal.show("")
    terminal.show(f"{size(found.travels)} would travel to a device that has the first")


def _short(value: str) -> str:
    """A digest by its beginning."""
    return f"{value[:12]}…" if len(value) == 64 else value
