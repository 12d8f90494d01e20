"""Every attack through the real command line: one line, its own; the right exit code; nothing left behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ernie_export.cli import main
from tests.bad_input import table
from tests.bad_input.attack import Arguments, Attack, Attacks, Place
from tests.bad_input.table import KINDS, Answer

PROGRAM = [sys.executable, "-m", "ernie_export"]
CASES = [pytest.param(kind, attack, id=table.key(kind, attack.name)) for kind in KINDS for attack in kind]


@pytest.fixture(scope="session")
def answers(request: pytest.FixtureRequest) -> Iterator[dict[str, Answer]]:
    """By attack: those of the document; with --write-table an empty dict, which becomes the document."""
    if not request.config.getoption("--write-table", default=False):
        yield table.read()
        return
    given: dict[str, Answer] = {}
    yield given
    table.DOCUMENT.write_text(table.render(given), "utf-8")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "attack"), CASES)
def test_an_attack_is_answered_in_one_line_and_leaves_nothing_behind(
    kind: Attacks,
    attack: Attack,
    tmp_path: Path,
    bundle: Callable[[str], Path],
    answers: dict[str, Answer],
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = Place(tmp_path, lambda: bundle("int4"))
    arguments = attack.lay_out(place)
    before = listing(tmp_path)
    capfd.readouterr()
    code, err = in_a_process(attack, place, arguments) if attack.under else here(arguments, capfd)
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err and "defect" not in err
    assert code == attack.exit_code, err
    after = listing(tmp_path)
    if attack.leaves_partial:
        before, after = without_partial(before), without_partial(after)
    assert list(after) == list(before) if attack.changes else after == before
    answer = Answer(code, err.strip().replace(f"{tmp_path}/", "").replace(str(tmp_path.parent), "…"))
    if request.config.getoption("--write-table", default=False):
        answers[table.key(kind, attack.name)] = answer
    else:
        assert answer == answers[table.key(kind, attack.name)]


def test_every_attack_has_an_answer_of_its_own(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-table", default=False):
        pytest.skip("the table is written when all tests are done")
    answers = table.read()
    assert list(answers) == [table.key(kind, attack.name) for kind in KINDS for attack in kind]
    told: dict[str, str] = {}
    for kind in KINDS:
        for attack in kind:
            message = answers[table.key(kind, attack.name)].message
            assert told.setdefault(message, attack.name) in (attack.name, attack.like)
            assert not attack.like or told[message] == attack.like
    assert table.render(answers) == table.DOCUMENT.read_text("utf-8")


def here(arguments: Arguments, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    return code, capfd.readouterr().err


def in_a_process(attack: Attack, place: Place, arguments: Arguments) -> tuple[int, str]:
    """Run the command line below `attack.under`, with one thread a library: each takes address space."""
    under = deprived(attack.under, place)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*under, *PROGRAM, *arguments], env=environment, capture_output=True, text=True)
    return ran.returncode, ran.stderr


def deprived(under: tuple[str, ...], place: Place) -> list[str]:
    root = os.geteuid() == 0
    if under[0] == "unprivileged":
        # root reads and writes everything unless it gives these two capabilities away
        return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if root else ["env"]
    if under[0] == "small disk":
        mount = f'mount -t tmpfs -o size={under[1]} tmpfs "{place.output.parent}" && exec "$@"'
        return ["unshare", "--mount", *([] if root else ["--map-root-user"]), "sh", "-c", mount, "sh"]
    if under[0] == "meddling":
        how, *more = under[1:]
        files = [str(place.root / word) if word.endswith(".safetensors") else word for word in more]
        return [sys.executable, "-m", "tests.bad_input.meddling", how, *files]
    return list(under)


def without_partial(listed: dict[str, Any]) -> dict[str, Any]:
    return {path: look for path, look in listed.items() if path != "out" and ".bundle.partial" not in path}


def listing(root: Path) -> dict[str, Any]:
    """Everything below `root`: kind, and for what is no folder size, time of writing and link."""
    return {path.relative_to(root).as_posix(): look(path) for path in sorted(root.rglob("*"))}


def look(path: Path) -> tuple[int, ...]:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    return (kind,) if stat.S_ISDIR(status.st_mode) else (kind, status.st_size, status.st_mtime_ns)
