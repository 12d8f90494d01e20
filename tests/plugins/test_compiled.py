"""The committed table of what nvcc makes of the kernels: of these sources, and as it has to be."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from benchmarks import kernels_compiled
from benchmarks.kernels_compiled import KERNELS, RESULT, SMS, sources_digest, text_of
from plugins.build import toolkit

TABLE: dict[str, Any] = json.loads(RESULT.read_text())
#: What each kernel that reads much is made of: tensor cores, and weights or cache 16 bytes at a time.
MEANT = {
    "linear_decode_tile": ("mma", "copies_16_bytes"),
    "linear_prefill_tile": ("mma", "copies_16_bytes"),
    "experts_gate_up": ("mma", "copies_16_bytes"),
    "experts_down": ("mma", "copies_16_bytes"),
    "experts_gate_up_tile": ("mma", "copies_16_bytes"),
    "experts_down_tile": ("mma", "copies_16_bytes"),
    "attention_part": ("mma", "loads_16_bytes"),
    "attention_tile": ("mma", "copies_16_bytes"),
    "router_logits": ("loads_16_bytes",),
}
ROWS = [(kernel, sm, row) for kernel, rows in TABLE["kernels"].items() for sm, row in rows.items()]


def test_is_of_these_sources_and_of_every_sm() -> None:
    assert TABLE["sources"] == sources_digest(), "run `make kernels-compiled` and look at what changed"
    assert all(list(rows) == list(SMS) for rows in TABLE["kernels"].values())


def test_documented_as_it_is() -> None:
    document = kernels_compiled.DOC.read_text()
    assert document == kernels_compiled.documented(document, TABLE)


@pytest.mark.parametrize("kernel", TABLE["kernels"])
def test_nothing_spills_and_nothing_wide_is_missing(kernel: str) -> None:
    for row in TABLE["kernels"][kernel].values():
        assert row["stack"] == 0 and row["spills"] == 0
        assert row["occupancy"] >= 0.08
        assert all(row[what] > 0 for what in MEANT.get(kernel.partition("<")[0], ()))


@pytest.mark.parametrize("kernel", [name for name in TABLE["kernels"] if name.endswith(", true>")])
def test_what_small_blocks_need_costs_large_ones_no_instructions(kernel: str) -> None:
    """Of 8 tokens and of 16; with bounds and exchanges it is 500 and more on an H100."""
    most = 300 if kernel.endswith("1, true>") else 380
    assert all(0 < row["loop"] <= most for row in TABLE["kernels"][kernel].values())


def test_what_the_host_runs_is_for_any_compiler() -> None:
    """Beside nvcc's objects the library has sources that no CUDA compiler sees."""
    command = ["g++", "-std=c++17", "-fsyntax-only", "-isystem", str(toolkit() / "include")]
    done = subprocess.run([*command, *map(str, KERNELS.glob("*.cpp"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_sm_compiled_anew() -> None:
    """The others: test_every_sm_compiled_anew, slow."""
    again = kernels_compiled.table(["87"])
    assert again["nvcc"] == TABLE["nvcc"]
    assert {kernel: rows["87"] for kernel, rows in again["kernels"].items()} == {
        kernel: rows["87"] for kernel, rows in TABLE["kernels"].items()
    }


@pytest.mark.slow
def test_every_sm_compiled_anew() -> None:
    assert text_of(kernels_compiled.table(list(SMS))) == RESULT.read_text()
