"""docs/bad-input.md: what the command line says to each attack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests import answer_table
from tests.bad_input import bundles, checkpoints, hosts, machine, recipes, texts
from tests.bad_input.attack import Attacks

DOCUMENT = Path(__file__).parents[2] / "docs" / "bad-input.md"
KINDS: tuple[Attacks, ...] = (
    checkpoints.FILES,
    checkpoints.SHARDS,
    checkpoints.CONFIGS,
    texts.TOKENIZERS,
    texts.TEMPLATES,
    recipes.RECIPES,
    recipes.TARGETS,
    recipes.OUTPUTS,
    bundles.BUNDLES,
    bundles.ENGINES,
    bundles.PROMPTS,
    hosts.HOSTS,
    machine.MACHINE,
)
COLUMNS = ("attack", "exit", "answer")
PREFACE = """\
# Bad input

What `ernie-export` answers to {count} broken or hostile checkpoints, configs, tokenizers, recipes, targets,
bundles and hosts. Every answer is one line on stderr, `error: cause. remedy`. The exit code is 2 where the input
is at fault, and 1 where the machine is, or a bundle is not what was built. Nothing is left half-written:
where the work had begun, `.NAME.partial` stays, and the same command goes on there.

This table is checked by `tests/bad_input`, which runs each attack through the command line, and written
by `pytest tests/bad_input --write-table`.
"""


class Answer(NamedTuple):
    exit_code: int
    message: str


def key(kind: Attacks, name: str) -> str:
    return f"{kind.kind}: {name}"


def render(answers: Mapping[str, Answer]) -> str:
    lines = [PREFACE.format(count=len(answers))]
    for kind in KINDS:
        rows = ((attack.name, *answers[key(kind, attack.name)]) for attack in kind)
        lines += answer_table.lines(kind.kind, COLUMNS, rows)
    return "\n".join(lines)


def read() -> dict[str, Answer]:
    found = answer_table.rows(DOCUMENT.read_text("utf-8"), COLUMNS)
    return {f"{kind}: {name}": Answer(int(code), message) for kind, (name, code, message) in found}
