"""The native attention against float64: any shape, any lengths, and under sanitizers."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.attention import EXAMPLES, Shape, check, feeds, session
from tests.engine.conftest import build_native

ROOT = Path(__file__).parents[2]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 14))
    new, past = draw(st.integers(1, 40)), draw(st.sampled_from([0, 5, 64, 130, 600, 1100]))
    lengths = draw(st.lists(st.integers(1, max(new, past)), min_size=1, max_size=3))
    lengths[0] = max(lengths[0], new)  # the cache has room for the new rows, those of padding too
    return Shape(group * kv_heads, kv_heads, 16 * draw(st.integers(1, 9)), new, past, tuple(lengths))


@pytest.mark.parametrize("shape", EXAMPLES, ids=lambda shape: f"{shape.new} over {shape.lengths}")
def test_it_is_attention(shape: Shape, library: Path) -> None:
    check(shape, library)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=shapes(), seed=st.integers(0, 2**32))
def test_it_is_attention_in_any_shape(library: Path, shape: Shape, seed: int) -> None:
    check(shape, library, seed)


def test_scores_may_be_far_apart(library: Path) -> None:
    """What e^x cannot hold: the largest score wins alone, wherever among the keys it is."""
    shape = Shape(2, 1, 16, 1, 1200, (1200,))
    for place in (0, 63, 64, 600, 1198):
        fed = feeds(shape, place)
        fed["past_key"][:] = -1000 * fed["query"][0, 0, :16] / np.abs(fed["query"]).max()
        fed["position_ids"][:] = 0  # nothing is turned
        fed["past_key"][0, 0, place] *= -1
        output = session(shape, library).run(None, fed)[0]
        np.testing.assert_allclose(output[0, 0, :16], fed["past_value"][0, 0, place], rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"position_ids": np.array([[10]])}, "a position is beyond the context"),
        ({"position_ids": np.array([[-1]])}, "a position is beyond the context"),
        ({"seqlens_k": np.array([-1], np.int32)}, "a row has no last token"),
        ({"seqlens_k": np.array([64], np.int32)}, "the cache is too short for its new rows"),
    ],
)
def test_what_would_read_or_write_elsewhere_is_refused(
    library: Path, changed: dict[str, Any], said: str
) -> None:
    shape = EXAMPLES[1]
    with pytest.raises(Exception, match=said):
        session(shape, library).run(None, feeds(shape, 0) | changed)


def test_heads_that_are_no_whole_vectors_are_refused(library: Path) -> None:
    shape = dataclasses.replace(EXAMPLES[1], width=24)
    with pytest.raises(Exception, match="heads must be a multiple of 16 wide"):
        session(shape, library).run(None, feeds(shape, 0))


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    checked = build_native(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {"LD_PRELOAD": asan.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "tests.engine.attention", checked]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert not ran.returncode, ran.stderr[-3000:]
