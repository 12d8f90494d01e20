from __future__ import annotations

import pytest
from rich.text import Text

from ernie_export.cli.terminal import facts, table, terminal
from ernie_export.progress import Silent
from tests.cli.pseudo_terminal import in_a_terminal


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "quiet", False)


def test_piped_tables_are_plain_whole_and_without_padding(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 100
    terminal.show(
        table(("name", "n"), [("[red]a", 1), (Text("b", "red"), 22), (long.strip(), 3)], right=(1,))
    )
    first, *rows, last = capsys.readouterr().out.splitlines()
    assert first.split() == ["name", "n"]
    assert [row.split() for row in rows] == [["[red]a", "1"], ["b", "22"]]
    assert last.startswith(long)
    assert all(line == line.rstrip() for line in (first, *rows, last))


def test_facts_show_any_value(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show(facts([("path", "/tmp/[x]"), ("count", 3)]))
    assert capsys.readouterr().out == "path   /tmp/[x]\ncount  3\n"


def test_quiet_silences_messages_but_not_results(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.quiet = True
    terminal.say("a message")
    terminal.show("a result")
    assert capsys.readouterr() == ("a result\n", "")


def test_there_is_no_progress_without_a_terminal() -> None:
    with terminal.progress() as progress:
        assert isinstance(progress, Silent)


@pytest.mark.parametrize(("quiet", "kind"), [(False, "Bars"), (True, "Silent")])
def test_progress_in_a_terminal(quiet: bool, kind: str) -> None:
    code = f"""
from ernie_export.cli.terminal import terminal
terminal.quiet = {quiet}
with terminal.progress() as progress:
    print(type(progress).__name__)
"""
    assert in_a_terminal(code).strip() == kind


def test_a_model_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b[2J\x9b\x7f\tb"
    sent = in_a_terminal(f"from ernie_export.cli.terminal import terminal; terminal.write({text!r})")
    assert sent == "a\ufffd[2J\ufffd\ufffd\tb"
    terminal.write(text)  # a file gets what the model wrote
    assert capsys.readouterr().out == text


def test_a_terminal_gets_colour() -> None:
    code = "from ernie_export.cli.terminal import *; terminal.show(facts([('a', coloured('good', True))]))"
    assert "\x1b[32mgood" in in_a_terminal(f"import os; os.environ['TERM'] = 'xterm'\n{code}")
