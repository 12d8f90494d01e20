"""A chat with one engine, that feeds only what is new since the last turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ernie_export.generate.generator import check_prompt, decode
from ernie_export.generate.sampling import Sampling
from ernie_export.generate.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine, Session


class Conversation:
    FIRST_CAPACITY = 1024  # tokens; doubled when a conversation outgrows its cache

    def __init__(
        self,
        engine: Engine,
        tokenizer: TextTokenizer,
        sampling: Sampling,
        max_tokens: int,
        system: str | None = None,
    ):
        """`max_tokens` bounds one answer; `system` is said before the first turn."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._messages = [{"role": "system", "content": self._system}] if self._system else []
        self._session: Session | None = None
        self._capacity = 0
        self._cached: list[int] = []  # the tokens in the session's cache

    def say(self, text: str, on_text: Callable[[str], None]) -> str:
        """One turn: the answer to `text`, also given in pieces to `on_text` while it comes.

        A turn that raises, or is interrupted, leaves the conversation as it was before.

        Raises:
            UserError: the conversation no longer fits the context, or the chat template refuses it.
        """
        messages = [*self._messages, {"role": "user", "content": text}]
        prompt = self._tokenizer.chat(messages)
        check_prompt(prompt, self._engine.info)
        stream = self._tokenizer.stream()
        answer = self._tokenizer.decode(self._answer(prompt, lambda _, token: on_text(stream.push(token))))
        on_text(stream.finish())
        self._messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def _answer(self, prompt: list[int], on_token: Callable[[int, int], None]) -> list[int]:
        """Token ids of the answer, with its stop token."""
        session, new = self._prepare(prompt)
        budget = min(self._max_tokens, self._capacity - len(prompt) + 1)
        self._session = None  # until the turn is over: an interrupted one leaves a cache that nobody knows
        (answer,) = decode(session, [new], [budget], self._sampling, self._tokenizer.stop_ids, on_token)
        self._session, self._cached = session, [*prompt, *answer[:-1]]
        return answer

    def _prepare(self, prompt: list[int]) -> tuple[Session, list[int]]:
        """A session whose cache holds the beginning of `prompt`, and the rest of it, to be fed."""
        needed = min(self._engine.info.max_context, len(prompt) + self._max_tokens)
        if self._session is None or needed > self._capacity:
            self._capacity = min(
                self._engine.info.max_context, max(needed, 2 * self._capacity, self.FIRST_CAPACITY)
            )
            return self._engine.start(1, self._capacity), prompt
        common = _common_prefix(self._cached, prompt[:-1])  # at least one token is fed, for its logits
        self._session.truncate(0, common)
        return self._session, prompt[common:]


def _common_prefix(a: list[int], b: list[int]) -> int:
    for at, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return at
    return min(len(a), len(b))
