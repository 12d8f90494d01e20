"""docs/bad-input.md: what the command line says to each attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

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
        lines += [f"## {kind.kind}", "", "| attack | exit | answer |", "|---|---|---|"]
        for attack in kind:
            code, message = answers[key(kind, attack.name)]
            lines.append(f"| {attack.name} | {code} | {cell(message)} |")
        lines.append("")
    return "\n".join(lines)


def cell(message: str) -> str:
    """The message as code in a table; a bar inside it would end the cell."""
    return "`` " + message.replace("|", "\\|") + " ``"


def read() -> dict[str, Answer]:
    return dict(_rows(DOCUMENT.read_text("utf-8")))


def _rows(text: str) -> Iterator[tuple[str, Answer]]:
    kind = ""
    for line in text.splitlines():
        if line.startswith("## "):
            kind = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| attack |"):
            name, code, message = line.removeprefix("| ").removesuffix(" |").split(" | ", 2)
            told = message.removeprefix("`` ").removesuffix(" ``").replace("\\|", "|")
            yield f"{kind}: {name}", Answer(int(code), told)
