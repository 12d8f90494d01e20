from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ernie_export.validate import metrics
from ernie_export.validate.metrics import (
    KL_EDGES,
    compare_logits,
    compare_routing,
    expert_metrics,
    kl_counts,
    logits_metrics,
    routing_metrics,
)

patient = settings(deadline=None, max_examples=50)
logits = hnp.arrays(np.float32, (6, 11), elements=st.floats(-60, 60, width=32))
IDS = np.array([3, 1, 4, 1, 5, 9])


def measured(reference: np.ndarray, export: np.ndarray, ids: np.ndarray = IDS) -> dict[str, float]:
    return logits_metrics([compare_logits(reference, export, ids)])


def test_kl_by_hand() -> None:
    """P = (1/2, 1/2), Q = (1/4, 3/4): KL = ½ ln 2 + ½ ln ⅔ = 0.143841 nats."""
    reference = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    export = np.log(np.array([[0.25, 0.75], [0.25, 0.75]], np.float32)) + 5  # a constant changes nothing
    found = compare_logits(reference, export, np.array([0, 1]))
    np.testing.assert_allclose(found.kl, [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0], atol=1e-7)
    assert found.same_top1.tolist() == [False, True]
    np.testing.assert_allclose(found.nll_reference, [-math.log(0.5)], rtol=1e-6)  # token 1 follows token 0
    np.testing.assert_allclose(found.nll_export, [-math.log(0.75)], rtol=1e-6)


def test_perplexity_by_hand() -> None:
    """Uniform over four tokens: 4. The export gives 1/8 to what follows: 8, twice as much."""
    reference = np.zeros((3, 4), np.float32)
    export = np.log(np.array([[1 / 8, 7 / 24, 7 / 24, 7 / 24]] * 3, np.float32))
    found = measured(reference, export, np.array([2, 0, 0]))
    assert found["perplexity.reference"] == pytest.approx(4)
    assert found["perplexity.export"] == pytest.approx(8, rel=1e-6)
    assert found["perplexity.ratio"] == pytest.approx(2, rel=1e-6)


def test_the_summary_is_over_all_windows() -> None:
    one = compare_logits(np.zeros((2, 8), np.float32), np.zeros((2, 8), np.float32), np.array([0, 1]))
    far = np.zeros((2, 8), np.float32)
    far[:, 7] = 9
    other = compare_logits(np.zeros((2, 8), np.float32), far, np.array([0, 1]))
    found = logits_metrics([one, one, one, other])
    assert found["logits.kl_max"] == other.kl[0]
    assert found["logits.kl_mean"] == pytest.approx(other.kl[0] / 4)
    assert found["logits.same_top1"] == 6 / 8
    assert found["logits.max_difference"] == 9


@patient
@given(logits, logits)
def test_kl_is_the_plain_formula_in_float64(reference: np.ndarray, export: np.ndarray) -> None:
    p, q = (np.exp(x.astype(np.float64)) for x in (reference, export))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.where(p > 0, p * np.log(p / q), 0).sum(-1)
    kl = compare_logits(reference, export, IDS).kl
    np.testing.assert_allclose(kl, plain, rtol=1e-6, atol=1e-9)
    assert (kl >= 0).all()


@patient
@given(logits, st.floats(-30, 30, width=32))
def test_nothing_differs_from_itself(reference: np.ndarray, shift: float) -> None:
    found = measured(reference, reference.copy())
    assert found["logits.kl_max"] == found["logits.max_difference"] == found["logits.non_finite"] == 0
    assert found["logits.same_top1"] == found["logits.top5_overlap"] == found["perplexity.ratio"] == 1


@patient
@given(logits, st.permutations(range(11)))
def test_the_names_of_tokens_do_not_matter(reference: np.ndarray, order: list[int]) -> None:
    export = np.flip(reference, axis=0)
    at = np.argsort(order)[IDS]
    found, again = measured(reference, export), measured(reference[:, order], export[:, order], at)
    for name in ("logits.kl_mean", "perplexity.reference", "perplexity.export", "logits.max_difference"):
        assert again[name] == pytest.approx(found[name], rel=1e-9, abs=1e-12)


@patient
@given(logits, logits)
def test_pieces_change_nothing(reference: np.ndarray, export: np.ndarray) -> None:
    whole = compare_logits(reference, export, IDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PIECE", 22)  # two rows at once
        pieces = compare_logits(reference, export, IDS)
    for field in metrics.LogitsComparison.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(whole, field), getattr(pieces, field))


def test_top5_overlap_by_hand() -> None:
    reference = np.arange(10, dtype=np.float32)[None].repeat(2, 0)  # 5 … 9
    export = reference.copy()
    export[0, :2] = 20  # 0, 1, 7, 8, 9: three in common
    found = compare_logits(reference, export, np.array([0, 0]))
    np.testing.assert_allclose(found.top5_overlap, [0.6, 1])


@patient
@given(logits, st.integers(0, 5), st.integers(0, 10), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_value_that_is_no_number_is_never_good(
    reference: np.ndarray, row: int, column: int, value: float
) -> None:
    export = reference.copy()
    export[row, column] = value
    found = compare_logits(reference, export, IDS)
    assert found.non_finite.sum() == 1
    assert np.isnan(found.kl[row])
    assert not found.same_top1[row]
    assert found.top5_overlap[row] == 0
    assert found.difference[row] == np.inf
    assert np.isfinite(np.delete(found.kl, row)).all()
    summary = logits_metrics([found])
    assert np.isnan(summary["logits.kl_mean"])
    assert np.isnan(summary["logits.kl_p99"])
    assert np.isnan(summary["logits.kl_max"])
    assert row == 5 or np.isnan(summary["perplexity.ratio"])


def test_every_token_has_its_place_in_the_histogram() -> None:
    compared = compare_logits(np.zeros((6, 11)), np.zeros((6, 11)), IDS)
    compared.kl = np.array([0, 1e-8, 9.9, 10, np.inf, np.nan])
    counts = kl_counts([compared, compared])
    assert len(counts) == len(KL_EDGES) + 1
    assert (counts.sum(), counts[0], counts[1], counts[-2], counts[-1]) == (12, 2, 2, 2, 6)


def test_different_shapes_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="shape"):
        compare_logits(np.zeros((2, 3)), np.zeros((2, 4)), np.array([0, 1]))


# --- Routing: E = 6 experts, k = 2 -------------------------------------------------------------------

CHOICE = np.array([[0.9, 0.8, 0.7, 0.2, 0.1, 0.0]])
REFERENCE = np.array([[0, 1]])
SCORES = np.array([[0.6, 0.4]], np.float32)


def routed(export: list[int], scores: list[float] | None = None) -> metrics.RoutingComparison:
    given_scores = SCORES if scores is None else np.array([scores], np.float32)
    return compare_routing((REFERENCE, np.array([export])), (SCORES, given_scores), CHOICE)


def test_the_order_of_the_experts_does_not_matter() -> None:
    found = routed([1, 0], [0.4, 0.6])
    assert (found.same[0], found.shared[0], found.gap[0], found.score_difference[0]) == (True, 1, 0, 0)


def test_the_gap_of_a_change_is_in_the_references_score() -> None:
    one, both = routed([0, 2]), routed([3, 2])
    assert not one.same[0]
    assert (one.shared[0], both.shared[0]) == (0.5, 0)
    np.testing.assert_allclose(one.gap, 0.8 - 0.7)  # 1 dropped, 2 taken
    np.testing.assert_allclose(both.gap, 0.9 - 0.2)  # the best dropped, the worst taken


def test_weights_are_compared_expert_by_expert() -> None:
    np.testing.assert_allclose(routed([1, 0], [0.5, 0.5]).score_difference, 0.1, atol=1e-6)
    assert routed([0, 1], [np.nan, 0.4]).score_difference[0] == np.inf


@pytest.mark.parametrize("export", [[0, 0], [0, -1], [0, 6], [7, 9]])
def test_what_is_no_choice_of_experts_is_as_bad_as_can_be(export: list[int]) -> None:
    found = routed(export)
    assert not found.same[0]
    assert found.gap[0] == np.inf
    assert found.shared[0] <= 0.5


choices = hnp.arrays(np.float64, (7, 9), elements=st.floats(0, 1), unique=True)


def top(choice: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-choice, axis=-1)[:, :k]


@patient
@given(choices, st.integers(1, 8), st.integers(0, 99))
def test_permuted_choices_agree(choice: np.ndarray, k: int, seed: int) -> None:
    reference = top(choice, k)
    order = np.random.default_rng(seed).permuted(np.arange(k)[None].repeat(7, 0), axis=1)
    scores = np.take_along_axis(choice, reference, -1)
    export, permuted = (np.take_along_axis(x, order, -1) for x in (reference, scores))
    found = routing_metrics([compare_routing((reference, export), (scores, permuted), choice)])
    assert found == {
        "routing.agreement": 1,
        "routing.experts": 1,
        "routing.largest_changed_gap": 0,
        "routing.score_difference": 0,
    }


@patient
@given(choices, choices, st.integers(1, 8), st.floats(0, 1e-3))
def test_a_small_error_changes_only_near_choices(
    choice: np.ndarray, other: np.ndarray, k: int, error: float
) -> None:
    """Scores moved by at most ε change a choice only where two scores are within 2 ε."""
    reference, export = top(choice, k), top(choice + error * (2 * other - 1), k)
    scores = np.ones_like(reference, dtype=np.float32)
    found = compare_routing((reference, export), (scores, scores), choice)
    assert (found.gap <= 2 * error + 1e-12).all()
    assert (found.gap[~found.same] >= 0).all()
    np.testing.assert_array_equal(found.same, (np.sort(reference) == np.sort(export)).all(-1))
    overlap = [len(set(a) & set(b)) / k for a, b in zip(reference.tolist(), export.tolist(), strict=True)]
    np.testing.assert_allclose(found.shared, overlap)


def test_routing_is_summed_over_layers() -> None:
    found = routing_metrics([routed([0, 1]), routed([0, 2]), routed([0, 1]), routed([3, 2])])
    assert found["routing.agreement"] == 0.5
    assert found["routing.experts"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert found["routing.largest_changed_gap"] == pytest.approx(0.7)


def test_experts_are_counted_over_windows() -> None:
    found = expert_metrics([routed([0, 1]), routed([0, 2]), routed([1, 0]), routed([0, -1])])
    assert found.expert_agreement == [1, 0.5, 0, None, None, None]
    assert found.expert_load_reference == [1, 1, 0, 0, 0, 0]
    assert found.expert_load == [1, 0.5, 0.25, 0, 0, 0]


@patient
@given(choices, choices, st.integers(1, 8))
def test_the_load_of_all_experts_is_k_and_those_that_agree_agree(
    choice: np.ndarray, other: np.ndarray, k: int
) -> None:
    reference, export = top(choice, k), top(other, k)
    scores = np.ones_like(reference, dtype=np.float32)
    compared = compare_routing((reference, export), (scores, scores), choice)
    found = expert_metrics([compared, compared])
    assert sum(found.expert_load) == pytest.approx(k)
    assert sum(found.expert_load_reference) == pytest.approx(k)
    for agreement, load, wanted in zip(
        found.expert_agreement, found.expert_load, found.expert_load_reference, strict=True
    ):
        assert (agreement is None) == (load == wanted == 0)
        assert agreement is None or 0 <= agreement <= 1
    if compared.same.all():
        assert set(found.expert_agreement) <= {1.0, None}


# --- Greedy text, differences ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "length"),
    [([1, 2, 3, 4], 4), ([1, 2, 9, 4], 2), ([9, 2, 3, 4], 0), ([1, 2], 2), ([], 0), ([1, 2, 3, 4, 5], 4)],
)
def test_texts_agree_up_to_their_first_difference(other: list[int], length: int) -> None:
    assert metrics.common_prefix([1, 2, 3, 4], other) == metrics.common_prefix(other, [1, 2, 3, 4]) == length


def test_a_difference_is_told_in_parts_of_the_spread_of_the_logits() -> None:
    a, empty = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]], np.float32), np.empty((0, 3), np.float32)
    off = np.array([[0.0, 0.0, 0.0], [0.0, 3.0, 0.0]], np.float32)
    expected = 3 / np.sqrt(4 + 4 + 16)  # of the second token, whose logits are 2 at the mean
    for size in (1e-3, 1.0, 1e3):
        found = metrics.relative_difference([size * a, empty], [size * (a + off), empty])
        assert found == pytest.approx(expected, rel=1e-6)
    assert metrics.relative_difference([a + 100], [a + 100 + off]) == pytest.approx(expected, rel=1e-5)
    assert metrics.relative_difference([a], [a]) == 0
    assert metrics.relative_difference([a, a[:1]], [a, a[1:]]) > 1  # the tokens of another row


def test_what_is_no_number_or_has_no_spread_is_infinitely_far() -> None:
    a, flat = np.array([[1.0, 2.0]], np.float32), np.ones((1, 2), np.float32)
    assert metrics.relative_difference([a], [np.array([[1.0, np.nan]])]) == np.inf
    assert metrics.relative_difference([np.array([[np.inf, 0]])], [np.array([[np.inf, 0]])]) == np.inf
    assert metrics.relative_difference([flat], [flat]) == 0
    assert metrics.relative_difference([flat], [flat + 1]) == np.inf
    with pytest.raises(ValueError, match="shapes"):
        metrics.relative_difference([a], [a[:0]])
