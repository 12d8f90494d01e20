"""docs/refusals.md: what is said to engines that do not fit, or are damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.refusals import files, machines
from tests.refusals.refusal import Refusals

DOCUMENT = Path(__file__).parents[2] / "docs" / "refusals.md"
KINDS: tuple[Refusals, ...] = (
    machines.RUNTIMES,
    machines.GPUS,
    machines.LIMITS,
    files.BINARIES,
    files.DOCUMENTS,
)
PREFACE = """\
# Refusals

What `ernie-export` says to {count} engines, plugins and kits that do not fit the machine, or are damaged. It says so
before the runtime sees them: a runtime answers a wrong file with a crash. Every answer tells what was found,
what is needed, and what mends it.

The machines of this table are described, not present: the load check (`ernie_export/engine/compatibility.py`) is
given what a probe (`ernie_export/engine/found.py`) would find there.

This table is checked by `tests/refusals`, and written by `pytest tests/refusals --write-refusals`.
"""


def key(kind: Refusals, name: str) -> str:
    return f"{kind.kind}: {name}"


def render(answers: Mapping[str, str]) -> str:
    lines = [PREFACE.format(count=len(answers))]
    for kind in KINDS:
        lines += [f"## {kind.kind}", "", "| what is wrong | answer |", "|---|---|"]
        for refusal in kind:
            message = answers[key(kind, refusal.name)].replace("|", "\\|")
            lines.append(f"| {refusal.name} | `` {message} `` |")
        lines.append("")
    return "\n".join(lines)


def read() -> dict[str, str]:
    return dict(_rows(DOCUMENT.read_text("utf-8")))


def _rows(text: str) -> Iterator[tuple[str, str]]:
    kind = ""
    for line in text.splitlines():
        if line.startswith("## "):
            kind = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| what "):
            name, message = line.removeprefix("| ").removesuffix(" |").split(" | ", 1)
            yield f"{kind}: {name}", message.removeprefix("`` ").removesuffix(" ``").replace("\\|", "|")
