"""GPTQ against the textbook, and what it promises whatever the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.quantize import gptq as module
from ernie_export.quantize.formats import NotFinite, dequantize, nearest, packing, quantize, unpack
from ernie_export.quantize.gptq import DAMPING, REACH, damped, gptq, rounded, triangular_root
from ernie_export.recipe import PartFormat

Array = np.ndarray[Any, Any]
patient = settings(deadline=None, max_examples=40)
INT4 = PartFormat(format="int4", block_size=32)
FORMS = st.builds(PartFormat, format=st.sampled_from(["int4", "int8"]), block_size=st.sampled_from([32, 64]))


def inputs(rng: np.random.Generator, tokens: int, columns: int) -> Array:
    """Correlated, of very different sizes, as activations are."""
    mixed = rng.normal(size=(tokens, columns)) @ rng.normal(size=(columns, columns)) / columns**0.5
    return (mixed * np.exp(rng.normal(size=columns))).astype(np.float32)


def textbook(weight: Array, hessian: Array, steps: Array, half: int) -> Array:
    """Algorithm 1 of arXiv 2210.17323 in float64, as optimal brain surgery states it: a column is rounded,
    the others move by its error · H⁻¹, and the column is eliminated from H⁻¹. → levels [N, K]."""
    weight, inverse = weight.astype(np.float64).copy(), np.linalg.inv(hessian.astype(np.float64))
    levels = np.empty_like(weight)
    for k in range(weight.shape[1]):
        levels[:, k] = np.clip(np.rint(weight[:, k] / steps[:, k]), -half, half - 1)
        error = (weight[:, k] - levels[:, k] * steps[:, k]) / inverse[k, k]
        weight -= np.outer(error, inverse[k])
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return levels


def output_error(weight: Array, packed: Any, form: PartFormat, hessian: Array) -> Array:
    """e H eᵀ of each row."""
    error = weight.astype(np.float64) - dequantize(packed, form)
    return np.einsum("nk,kl,nl->n", error, hessian, error)


@pytest.mark.parametrize("columns", [32, 160, 300])
def test_the_codes_are_those_of_the_textbook(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bound on how far a code may go, and up to what float32 and ties between codes leave open."""
    monkeypatch.setattr(module, "REACH", 100)
    rng = np.random.default_rng(columns)
    weight = rng.normal(size=(24, columns)).astype(np.float32)
    steps = (0.2 + 0.2 * rng.random((24, columns))).astype(np.float32)
    x = inputs(rng, 4 * columns, columns)
    hessian = damped(x.T @ x, tokens=10**6)
    want = textbook(weight, hessian, steps, 8)
    closest = nearest(weight, steps, 8)
    got, errors = rounded(weight, closest, steps, triangular_root(hessian), 8)
    assert (want != closest).mean() > 0.2
    assert (got == want).mean() > 0.995
    same = (got == want).all(axis=1)
    assert same.sum() >= 12
    off = weight.astype(np.float64) - want * steps
    np.testing.assert_allclose(errors[same], np.einsum("nk,kl,nl->n", off, hessian, off)[same], rtol=2e-3)


@patient
@given(seed=st.integers(0, 2**32 - 1), form=FORMS, blocks=st.integers(1, 4), rows=st.integers(1, 9),
       tokens=st.integers(0, 300))  # fmt: skip
def test_no_row_is_worse_than_rounded_to_nearest(
    seed: int, form: PartFormat, blocks: int, rows: int, tokens: int
) -> None:
    """Also where H has hardly a rank, and no code is further than REACH from the nearest."""
    rng = np.random.default_rng(seed)
    assert form.block_size
    columns = blocks * form.block_size
    weight = (rng.standard_t(4, size=(rows, columns)) * rng.choice([1e-3, 1.0])).astype(np.float32)
    x = inputs(rng, tokens, columns)
    hessian = x.T @ x
    made, plain = gptq(weight, hessian, tokens, form), quantize(weight, form)
    judged = damped(hessian, tokens)
    mine, near = (output_error(weight, packed, form, judged) for packed in (made.packed, plain))
    assert (mine <= near * (1 + 1e-3) + 1e-12).all()
    assert made.error <= made.error_nearest * (1 + 1e-5)
    np.testing.assert_allclose([made.error, made.error_nearest], [mine.sum(), near.sum()], rtol=5e-3)
    np.testing.assert_array_equal(made.packed.scales, plain.scales)
    bits = packing(form)[0]
    codes, closest = (unpack(packed.data, bits).astype(int) for packed in (made.packed, plain))
    assert np.abs(codes - closest).max() <= REACH


def test_what_it_gains_holds_for_inputs_that_it_did_not_see() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(64, 256)).astype(np.float32), inputs(rng, 4096, 256)
    seen, unseen = x[:3072], x[3072:]
    made = gptq(weight, seen.T @ seen, len(seen), INT4)
    assert made.error < 0.65 * made.error_nearest
    off = [unseen @ (weight - dequantize(p, INT4)).T for p in (made.packed, quantize(weight, INT4))]
    assert np.square(off[0]).sum() < 0.65 * np.square(off[1]).sum()


def test_uncorrelated_inputs_leave_the_nearest_codes() -> None:
    weight = np.random.default_rng(1).normal(size=(16, 64)).astype(np.float32)
    made = gptq(weight, np.eye(64, dtype=np.float32), 64, INT4)
    np.testing.assert_array_equal(made.packed.data, quantize(weight, INT4).data)
    nothing = gptq(weight, np.zeros((64, 64), np.float32), 0, INT4)
    np.testing.assert_array_equal(nothing.packed.data, quantize(weight, INT4).data)


def test_rows_in_pieces_and_again_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    weight, x = rng.normal(size=(40, 128)).astype(np.float32), inputs(rng, 500, 128)
    whole = gptq(weight, x.T @ x, 500, INT4)
    again = gptq(weight, x.T @ x, 500, INT4)
    np.testing.assert_array_equal(whole.packed.data, again.packed.data)
    assert (whole.error, whole.error_nearest) == (again.error, again.error_nearest)
    monkeypatch.setattr(module, "ROWS", 16)
    pieces = gptq(weight, x.T @ x, 500, INT4)
    assert (pieces.packed.data == whole.packed.data).mean() > 0.99  # BLAS sums other shapes in another order


def test_damping_is_a_part_of_the_mean_and_more_of_few_tokens() -> None:
    hessian = np.diag([1.0, 3.0]).astype(np.float32)
    np.testing.assert_allclose(damped(hessian, 10**9), hessian + DAMPING * 2 * np.eye(2), rtol=1e-6)
    np.testing.assert_allclose(damped(hessian, 4), hessian + (DAMPING + 0.5) * 2 * np.eye(2))


def test_numbers_that_are_none() -> None:
    weight = np.ones((2, 32), np.float32)
    for hessian in (np.full((32, 32), np.nan, np.float32), -np.eye(32, dtype=np.float32)):
        with pytest.raises(ValueError, match=r"NaN or infinity|not positive definite"):
            gptq(weight, hessian, 1000, INT4)
    weight[1, 3] = np.inf
    with pytest.raises(NotFinite):
        gptq(weight, np.eye(32, dtype=np.float32), 32, INT4)
