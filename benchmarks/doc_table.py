"""Tables of a document that a benchmark writes, between two marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_table(document: str, script: str, table: str) -> str:
    """The document with the table of benchmarks/`script` as given; ValueError if it has no place for it."""
    begin, end = f"<!-- benchmarks/{script} writes this -->\n\n", "\n\n<!-- to here -->"
    start = document.index(begin) + len(begin)
    return document[:start] + table + document[document.index(end, start) :]
