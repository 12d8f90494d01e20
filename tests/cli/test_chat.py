from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.generate.conversation import Conversation
from ernie_export.generate.sampling import Sampling
from ernie_export.generate.tokenizer import TextTokenizer
from tests.cli.pseudo_terminal import in_a_terminal
from tests.generate.recurrent_engine import RecurrentEngine

CHAT = """
from ernie_export.engine import open
from tests.generate.recurrent_engine import RecurrentEngine
open.open_engine = lambda folder: RecurrentEngine(320, max_context={context})
from ernie_export.cli import main
raise SystemExit(main(["chat", {folder!r}, "--max-tokens", "6"]))
"""


@pytest.fixture
def chat(run, small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Talks with the bundle through a pipe."""

    def chat(lines: str, *options: str):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run("chat", small_bundle, "--max-tokens", "6", *options)

    return chat


def answers(
    bundle: Path, *turns: str, system: str | None = None, sampling: Sampling | None = None
) -> list[str]:
    tokenizer = TextTokenizer.read(bundle)
    engine = RecurrentEngine(320, max_context=512)
    conversation = Conversation(engine, tokenizer, sampling or Sampling(), 6, system)
    return [conversation.say(turn, lambda _: None) for turn in turns]


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


def test_each_line_is_a_turn(chat, small_bundle: Path) -> None:
    first, second = answers(small_bundle, "What is a list?", "Why?")
    assert chat("What is a list?\n\n  Why?") == (0, lines(first, second), "")


def test_reset_begins_anew(chat, small_bundle: Path) -> None:
    (first,) = answers(small_bundle, "Why?")
    assert chat("Why?\n/reset\nWhy?\n") == (0, lines(first, first), "The conversation begins anew.\n")


def test_exit_ends(chat, small_bundle: Path) -> None:
    assert chat("Why?\n/exit\nWhy?\n").out == lines(*answers(small_bundle, "Why?"))


def test_an_unknown_command_is_not_sent_to_the_model(chat) -> None:
    assert chat("/quit\n") == (0, "", "/quit is no command; there are /reset and /exit.\n")


def test_system_text_and_sampling(chat, small_bundle: Path) -> None:
    expected = answers(small_bundle, "Why?", system="Be brief.", sampling=Sampling(1.5, seed=4))
    options = ["--system", "Be brief.", "--temperature", "1.5", "--seed", "4"]
    assert chat("Why?\n", *options).out == lines(*expected) != chat("Why?\n").out


def test_a_script_that_says_too_much_gets_an_exit_code(chat) -> None:
    ran = chat("Why?\n" + "word " * 600)
    assert ran.code == 2 and "the context holds 512" in ran.err


def test_bytes_that_are_no_text_are_read_as_best_they_can(small_bundle: Path) -> None:
    code = CHAT.format(folder=str(small_bundle), context=512)
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=b"caf\xe9\n",
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert ran.stderr == b"" and ran.returncode == 0
    assert ran.stdout.decode() == lines(*answers(small_bundle, "caf\ufffd"))


def test_a_person_at_a_terminal(small_bundle: Path) -> None:
    code = CHAT.format(folder=str(small_bundle), context=60)
    seen = in_a_terminal(code, [b"Why?\n", b"word " * 60 + b"\n", b"Thanks.\n", b"\x04"])
    first, second = answers(small_bundle, "Why?", "Thanks.")
    assert "› " in seen
    assert "error: The prompt has" in seen  # and the conversation goes on
    for answer in (first, second):
        assert answer.replace("\n", "\r\n") in seen
