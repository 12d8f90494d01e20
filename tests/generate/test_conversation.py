from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.errors import UserError
from ernie_export.generate.conversation import Conversation
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from ernie_export.generate.tokenizer import TextTokenizer
from tests.generate.recurrent_engine import RecurrentEngine


@pytest.fixture
def tokenizer(byte_level: Path) -> TextTokenizer:
    return TextTokenizer.read(byte_level)


def fed_tokens(engine) -> list[int]:
    return [token for (row,) in engine.fed for token in row]


def ignore(_: str) -> None:
    pass


def test_turns_answer_as_if_the_whole_conversation_were_fed_anew(tokenizer: TextTokenizer) -> None:
    engine = RecurrentEngine(vocab_size=320, max_context=4096)
    chat = Conversation(engine, tokenizer, Sampling(0.8, seed=1), max_tokens=12, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in ("How do I sort a list?", "Why?", "Thanks."):
        pieces: list[str] = []
        answer = chat.say(turn, pieces.append)
        messages.append({"role": "user", "content": turn})
        (expected,) = generate(
            RecurrentEngine(vocab_size=320, max_context=4096),
            [tokenizer.chat(messages)],
            12,
            Sampling(0.8, seed=1),
            tokenizer.stop_ids,
        )
        assert answer == "".join(pieces) == tokenizer.decode(expected.answer_ids)
        messages.append({"role": "assistant", "content": answer})


def test_a_turn_feeds_only_what_is_new(tokenizer: TextTokenizer) -> None:
    engine = RecurrentEngine(vocab_size=320, max_context=4096)
    chat = Conversation(engine, tokenizer, Sampling(), max_tokens=5)
    first = chat.say("How do I sort a list?", ignore)
    engine.fed.clear()
    chat.say("Why?", ignore)
    closing = tokenizer.encode(first + "<|end_of_sentence|>User: Why?\nAssistant: ")
    assert len(fed_tokens(engine)) <= len(closing) + 5
    assert len(engine.capacities) == 1


def test_the_cache_grows_with_the_conversation(tokenizer: TextTokenizer) -> None:
    engine = RecurrentEngine(vocab_size=320, max_context=3000)
    chat = Conversation(engine, tokenizer, Sampling(), max_tokens=5)
    for _ in range(3):
        chat.say("How do I sort a list? " * 60, ignore)
    assert engine.capacities[0] == Conversation.FIRST_CAPACITY
    assert engine.capacities[-1] > engine.capacities[0]


def test_reset_forgets(tokenizer: TextTokenizer) -> None:
    engine = RecurrentEngine(vocab_size=320, max_context=4096)
    chat = Conversation(engine, tokenizer, Sampling(), max_tokens=8)
    first = chat.say("Why?", ignore)
    chat.say("Thanks.", ignore)
    chat.reset()
    assert chat.say("Why?", ignore) == first


def test_a_turn_that_does_not_fit_changes_nothing(tokenizer: TextTokenizer) -> None:
    engine = RecurrentEngine(vocab_size=320, max_context=60)
    chat = Conversation(engine, tokenizer, Sampling(), max_tokens=3)
    with pytest.raises(UserError, match="the context holds 60"):
        chat.say("How do I sort a list? " * 20, ignore)
    untouched = Conversation(engine, tokenizer, Sampling(), max_tokens=3)
    assert chat.say("Why?", ignore) == untouched.say("Why?", ignore)


def test_an_interrupted_turn_changes_nothing(tokenizer: TextTokenizer) -> None:
    engine = RecurrentEngine(vocab_size=320, max_context=4096)
    chat = Conversation(engine, tokenizer, Sampling(), max_tokens=8)
    untouched = Conversation(engine, tokenizer, Sampling(), max_tokens=8)
    assert chat.say("Why?", ignore) == untouched.say("Why?", ignore)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.say("How do I sort a list?", interrupt)
    assert chat.say("Thanks.", ignore) == untouched.say("Thanks.", ignore)
