"""The stored model of what the kernels move: computed anew, and held to what a launch asks for."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import kernel_model
from benchmarks.kernel_model import DOC, RESULT, chosen_experts, documented, linear, model, text_of
from tests.plugins import exact, kernels


def test_stored_and_documented_as_it_is() -> None:
    assert RESULT.read_text() == text_of(model()), "run `python benchmarks/kernel_model.py`"
    assert DOC.read_text() == documented(DOC.read_text(), model())


def test_every_target_with_a_gpu_has_a_time_for_each_row() -> None:
    stored = model()
    assert {"h100", "jetson-agx-orin-64gb"} <= stored["bytes_a_second"].keys()
    assert all(row["microseconds"].keys() == stored["bytes_a_second"].keys() for row in stored["rows"])


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_those_that_the_launches_ask_for(bits: int) -> None:
    """The emulation counts the codes that are read; their scales are added."""
    hidden, width, number, block = 256, 128, 8, kernel_model.BLOCK
    random = np.random.default_rng(0)
    gate_up = exact.weights(random, (number, 2 * width, hidden), bits, block)
    down = exact.weights(random, (number, hidden, width), bits, block)
    x, indices = exact.activations(random, (1, hidden), np.float16), np.array([[5, 0, 3]])
    answer = kernels.experts(x, indices, np.ones((1, 3), np.float16), (*gate_up, *down), bits, block)
    scales = 3 * (gate_up[1][0].nbytes + down[1][0].nbytes)
    assert chosen_experts(hidden, width, number, 3, bits, 1).weights == pytest.approx(
        answer.weight_bytes + scales
    )
    one = kernels.linear(x, gate_up[0][0], gate_up[1][0], bits, block)
    assert linear("", [(2 * width, hidden)], bits, 1).weights == one.weight_bytes + gate_up[1][0].nbytes


def test_a_token_of_the_21b_reads_six_experts() -> None:
    row = next(work for work in kernel_model.works() if work.of == "experts, INT4" and work.tokens == 1)
    assert row.weights == pytest.approx(6 * 3 * 1536 * 2560 * (0.5 + 2 / 128))
    assert row.flops == 2 * 6 * 3 * 1536 * 2560
