"""Tables of answers in a document, written and read back: below a title each, the last cell of a row an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def lines(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A title and its table; the answer is set as code, in which a bar would end the cell."""
    head = [f"## {title}", "", _line(columns), f"|{'---|' * len(columns)}"]
    return [*head, *(_line([*others, f"`` {_escaped(str(answer))} ``"]) for *others, answer in rows), ""]


def rows(text: str, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each row of the document with the title above it, the answer as it was."""
    title = ""
    for line in text.splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
        elif line.startswith("| ") and line != _line(columns):
            *others, answer = line.removeprefix("| ").removesuffix(" |").split(" | ", len(columns) - 1)
            yield title, [*others, answer.removeprefix("`` ").removesuffix(" ``").replace("\\|", "|")]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _escaped(answer: str) -> str:
    return answer.replace("|", "\\|")
