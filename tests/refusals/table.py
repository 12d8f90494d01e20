"""docs/refusals.md: what is said to engines that do not fit, or are damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests import answer_table
from tests.refusals import files, kits, machines, plugins
from tests.refusals.refusal import Refusals

DOCUMENT = Path(__file__).parents[2] / "docs" / "refusals.md"
KINDS: tuple[Refusals, ...] = (
    machines.RUNTIMES,
    machines.GPUS,
    machines.LIMITS,
    files.BINARIES,
    plugins.PLUGINS,
    files.DOCUMENTS,
    kits.KITS,
)
COLUMNS = ("what is wrong", "answer")
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
        rows = ((refusal.name, answers[key(kind, refusal.name)]) for refusal in kind)
        lines += answer_table.lines(kind.kind, COLUMNS, rows)
    return "\n".join(lines)


def read() -> dict[str, str]:
    found = answer_table.rows(DOCUMENT.read_text("utf-8"), COLUMNS)
    return {f"{kind}: {name}": message for kind, (name, message) in found}
