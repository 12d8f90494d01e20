from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie_export.errors import UserError
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from tests.generate.recurrent_engine import RecurrentEngine

GREEDY = Sampling()
NEVER: frozenset[int] = frozenset()
prompt = st.lists(st.integers(0, 49), min_size=1, max_size=12)


def alone(engine, ids: list[int], max_tokens: int, sampling: Sampling = GREEDY, stop: frozenset[int] = NEVER):
    return generate(engine, [ids], max_tokens, sampling, stop)[0]


def test_greedy_tokens_are_those_of_feeding_the_whole_text_anew(engine) -> None:
    expected = [3, 1, 4]
    for _ in range(10):
        expected.append(int(engine.start().feed([expected]).logits[0][-1].argmax()))
    assert alone(engine, [3, 1, 4], 10).token_ids == expected[3:]


def test_prefill_is_one_call_and_each_token_is_fed_once(engine) -> None:
    answer = alone(engine, [3, 1, 4], 4).token_ids
    assert engine.fed == [[[3, 1, 4]], *([[token]] for token in answer[:-1])]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(prompt, min_size=2, max_size=4), temperature=st.sampled_from([0.0, 1.0]))
def test_a_row_does_not_depend_on_its_neighbours(
    engine, prompts: list[list[int]], temperature: float
) -> None:
    sampling = Sampling(temperature, seed=3)
    stop = frozenset(range(5))
    together = generate(engine, prompts, 20, sampling, stop)
    again = generate(engine, [prompts[0], [1], *prompts[2:]], 20, sampling, stop)
    assert together[0] == again[0] and together[2:] == again[2:]
    assert together[0] == alone(engine, prompts[0], 20, sampling, stop)


def test_a_finished_row_is_fed_nothing_while_the_others_go_on(engine) -> None:
    stop = frozenset([alone(engine, [3, 1, 4], 5).token_ids[1]])
    done, other = generate(engine, [[3, 1, 4], [2, 7]], 8, GREEDY, stop)
    assert (done.finish_reason, len(done.token_ids)) == ("stop", 2)
    assert len(other.token_ids) > 2
    assert all(feed[0] == [] for feed in engine.fed[-(len(other.token_ids) - 2) :])


def test_the_stop_token_ends_the_tokens_but_is_not_told(engine) -> None:
    free = alone(engine, [3, 1, 4], 5).token_ids
    told: list[tuple[int, int]] = []
    (stopped,) = generate(engine, [[3, 1, 4]], 5, GREEDY, frozenset([free[2]]), lambda *at: told.append(at))
    assert stopped.token_ids == free[:3]
    assert stopped.answer_ids == free[:2]
    assert told == [(0, token) for token in free[:2]]


def test_without_a_stop_token_the_answer_is_all(engine) -> None:
    generation = alone(engine, [3, 1, 4], 5)
    assert generation.finish_reason == "length"
    assert generation.answer_ids == generation.token_ids and len(generation.token_ids) == 5


def test_a_full_context_ends_the_row() -> None:
    engine = RecurrentEngine(max_context=8)
    short, full = generate(engine, [[1], [1] * 8], 5, GREEDY, NEVER)
    assert (len(short.token_ids), short.finish_reason) == (5, "length")
    assert (len(full.token_ids), full.finish_reason) == (1, "length")
    assert len(alone(engine, [1] * 6, 99).token_ids) == 3


def test_the_cache_is_no_longer_than_needed(engine) -> None:
    generate(engine, [[1, 2], [1]], 5, GREEDY, NEVER)
    assert engine.capacities == [7]


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([], 1, "no prompt"),
        ([[1], []], 1, "empty"),
        ([[1] * 65], 1, "65 tokens, the context holds 64"),
        ([[1, 50]], 1, "id 50 is outside"),
        ([[-1]], 1, "id -1 is outside"),
        ([[1]], 0, "0 tokens"),
    ],
)
def test_what_cannot_be_generated(engine, prompts: list[list[int]], max_tokens: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(engine, prompts, max_tokens, GREEDY, NEVER)
    assert engine.fed == []
