"""Prefill the prompts, then decode all rows together, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ernie_export.errors import UserError
from ernie_export.generate.sampling import Sampling

if TYPE_CHECKING:
    from ernie_export.engine.info import EngineInfo
    from ernie_export.engine.interface import Engine, Session

OnToken = Callable[[int, int], None]
"""Called with (row, token id) as soon as the token is chosen; not for a stop token."""


@dataclass(frozen=True)
class Generation:
    prompt_ids: list[int]
    token_ids: list[int]
    """What followed the prompt; ends with the stop token where one ended it."""
    finish_reason: Literal["stop", "length"]

    @property
    def answer_ids(self) -> list[int]:
        """What followed the prompt, without the stop token."""
        return self.token_ids[:-1] if self.finish_reason == "stop" else self.token_ids


def generate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
    on_token: OnToken | None = None,
) -> list[Generation]:
    """Continue each prompt by up to `max_tokens` tokens, all of them in one batch.

    A row ends with a stop token ("stop"), or with `max_tokens` or a full context ("length").

    Raises:
        UserError: there is no prompt, or one is empty, longer than the context, or holds an id outside the
            vocabulary; `max_tokens` is below 1.
    """
    if not prompts:
        raise UserError("There is no prompt", "Give one or more.")
    for prompt in prompts:
        check_prompt(prompt, engine.info)
    if max_tokens < 1:
        raise UserError(f"{max_tokens} tokens cannot be generated", "Ask for 1 or more.")
    longest = max(len(prompt) for prompt in prompts)
    capacity = min(engine.info.max_context, longest + max_tokens)
    session = engine.start(len(prompts), capacity)
    budgets = [min(max_tokens, capacity - len(prompt) + 1) for prompt in prompts]
    answers = decode(session, prompts, budgets, sampling, stop_ids, on_token)
    return [_generation(prompt, answer, stop_ids) for prompt, answer in zip(prompts, answers, strict=True)]


def decode(
    session: Session,
    rows: Sequence[Sequence[int]],
    budgets: Sequence[int],
    sampling: Sampling,
    stop_ids: frozenset[int],
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """Feed each row, then choose and feed tokens until a stop token or the row's budget is reached.

    Returns the tokens of each row; the cache then holds all of them but the last.
    """
    samplers = [sampling.sampler(row) for row in range(len(rows))]
    answers: list[list[int]] = [[] for _ in rows]
    feed: list[Sequence[int]] = list(rows)
    while any(feed):
        logits = session.feed(feed).logits
        for row, fed in enumerate(feed):
            if not fed:
                continue
            token = samplers[row].pick(logits[row][-1])
            answers[row].append(token)
            if token not in stop_ids and on_token:
                on_token(row, token)
            over = token in stop_ids or len(answers[row]) >= budgets[row]
            feed[row] = [] if over else [token]
    return answers


def check_prompt(ids: Sequence[int], info: EngineInfo) -> None:
    """Raises UserError where the engine cannot be given these token ids."""
    if not ids:
        raise UserError("The prompt is empty", "Give at least one token.")
    if len(ids) > info.max_context:
        raise UserError(
            f"The prompt has {len(ids)} tokens, the context holds {info.max_context}", "Shorten the prompt."
        )
    for id in ids:
        if not 0 <= id < info.vocab_size:
            raise UserError(
                f"Token id {id} is outside the vocabulary", f"Ids go from 0 to {info.vocab_size - 1}."
            )


def _generation(prompt: Sequence[int], answer: list[int], stop_ids: frozenset[int]) -> Generation:
    return Generation(list(prompt), answer, "stop" if answer[-1] in stop_ids else "length")
