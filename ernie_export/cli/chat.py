"""`chat`: a conversation with a bundle."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.generate import MaxTokens, Seed, Temperature, TopK, TopP
from ernie_export.cli.terminal import terminal
from ernie_export.cli.validate import BundleFolder
from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.generate.conversation import Conversation


def chat(
    bundle: BundleFolder,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What is said before the first turn.")
    ] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
) -> None:
    """Talk with a bundle, a line a turn.

    /reset begins anew; /exit or Ctrl-D ends; Ctrl-C ends an answer.
    """
    from ernie_export.engine.open import open_engine
    from ernie_export.generate.conversation import Conversation
    from ernie_export.generate.sampling import Sampling
    from ernie_export.generate.tokenizer import TextTokenizer

    sampling = Sampling(temperature, top_k, top_p, seed)
    engine = open_engine(bundle)
    conversation = Conversation(engine, TextTokenizer.read(bundle), sampling, max_tokens, system)
    for line in _lines():
        match line.strip():
            case "":
                continue
            case "/exit":
                return
            case "/reset":
                conversation.reset()
                terminal.say("The conversation begins anew.")
            case command if command.startswith("/"):
                terminal.say(f"{command} is no command; there are /reset and /exit.")
            case text:
                _turn(conversation, text)


def _turn(conversation: Conversation, text: str) -> None:
    """A person at the terminal may end an answer, or try another one; a script gets an exit code."""
    try:
        conversation.say(text, terminal.write)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    except UserError as error:
        if not sys.stdin.isatty():
            raise
        terminal.say(f"error: {error}")
    terminal.write("\n")


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() its line editing and history
        with contextlib.suppress(EOFError):
            while True:
                yield input("› ")
        terminal.write("\n")
    else:
        getattr(sys.stdin, "reconfigure", lambda **_: None)(errors="replace")
        yield from sys.stdin
