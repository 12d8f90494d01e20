"""From the mapped checkpoint into the weight files, without a graph: killed, filled up, changed on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export import streaming
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.errors import UserError
from ernie_export.graph import weight_writer
from ernie_export.partial import Work
from ernie_export.plan.weights import weight_files
from ernie_export.progress import Silent
from ernie_export.quantize.formats import Packed, quantize
from ernie_export.recipe import PartFormat, Recipe
from tests.bad_input.test_bad_input import deprived

INT4, CONTEXT = Recipe.find("int4").parts, 64


class Interrupted(Exception):
    """What ends a build in these tests."""


class Meter:
    """A Progress that calls `often` at each sign of progress, and adds up what it is told."""

    def __init__(self, often: Callable[[], None] = lambda: None) -> None:
        self.total, self.done, self.often = 0.0, 0.0, often

    @contextmanager
    def step(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Meter]:
        self.total = total or 0
        yield self

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self.often()


def build(
    partial: Path, checkpoint: Checkpoint, parts: Any = INT4, meter: Any = None
) -> tuple[Work, list[str]]:
    """The weight files of a checkpoint, one after the other; what was told."""
    partial.mkdir(exist_ok=True)
    told: list[str] = []
    work = Work(partial, Silent())
    streaming.prepare(work, checkpoint, parts, CONTEXT, told.append)
    with ThreadPoolExecutor(2) as pool, (meter or Meter()).step("", 0) as step:
        for file in weight_files(checkpoint.config, parts, CONTEXT):
            streaming.make_weight_file(work, checkpoint, parts, file, pool, step)
    return work, told


def after(signs: int, action: Callable[[], None]) -> Meter:
    """Does `action` at that sign of progress."""
    left = iter(range(signs, -1000000, -1))
    return Meter(lambda: action() if next(left) == 0 else None)


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No digest is known from another test."""
    monkeypatch.setenv("ERNIE_EXPORT_CACHE", str(tmp_path / "cache"))


def interrupt() -> None:
    raise Interrupted


def files(work: Work) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (work.folder / "weights").iterdir()}


def settled(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    for path in target.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    return target


def test_a_build_goes_on_at_the_last_finished_file_and_reads_only_the_rest(
    nano: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        build(tmp_path / "partial", Checkpoint.open(nano), meter=after(60, interrupt))
    stood = {
        path.name: path.stat().st_ino for path in (tmp_path / "partial" / "bundle" / "weights").glob("*.bin")
    }
    assert 2 <= len(stood) < 8
    again = Checkpoint.open(nano)
    assert not again.digests
    work, told = build(tmp_path / "partial", again)
    assert told[0].startswith(f"An earlier build is taken up: {len(stood)} of 9 weight files are there (")
    assert files(work).items() >= stood.items()
    assert set(again.digests) == set(again.tensors)  # those of the files that stood are in the journal
    whole = Checkpoint.open(nano)
    fresh, told = build(tmp_path / "fresh", whole)
    assert told == [] and fresh.digests == work.digests and whole.digests == again.digests


def test_a_finished_build_with_another_recipe_keeps_what_is_the_same(nano: Path, tmp_path: Path) -> None:
    before, _ = build(tmp_path / "partial", Checkpoint.open(nano))
    stood = files(before)
    layers = {"2": {"experts": {"format": "int8", "block_size": 32}}}
    other = type(INT4).model_validate(INT4.model_dump() | {"layers": layers})
    work, told = build(tmp_path / "partial", Checkpoint.open(nano), other)
    assert "What an earlier build left was made by another recipe: it is made anew" in told
    assert told[0].startswith("An earlier build is taken up: 8 of 9 weight files are there (")
    changed = {path for path, sha256 in work.digests.items() if before.digests[path] != sha256}
    assert changed == {"weights/layer-002.bin"}
    del stood["layer-002.bin"]
    assert files(work).items() >= stood.items()


def test_another_checkpoint_begins_anew_and_says_so(nano: Path, tmp_path: Path) -> None:
    build(tmp_path / "partial", Checkpoint.open(nano))
    other = settled(nano, tmp_path / "other")
    _, told = build(tmp_path / "partial", Checkpoint.open(other))
    assert told == [
        "What an earlier build left was made from another checkpoint, or this one has changed since: it is made anew"
    ]


def test_a_shard_that_changes_while_it_is_read_is_named(nano: Path, tmp_path: Path) -> None:
    folder = settled(nano, tmp_path / "model")
    shard = folder / "model.safetensors"
    checkpoint = Checkpoint.open(folder)
    meter = after(60, lambda: os.utime(shard))
    with pytest.raises(UserError, match=r"model\.safetensors changed while it was read"):
        build(tmp_path / "partial", checkpoint, meter=meter)
    done = json.loads((tmp_path / "partial" / "journal.json").read_bytes())
    assert "weights/layer-005.bin" not in done


def test_progress_counts_the_bytes_of_the_checkpoint(nano: Path, tmp_path: Path) -> None:
    checkpoint, meter = Checkpoint.open(nano), Meter()
    build(tmp_path / "partial", checkpoint, meter=meter)
    planned = weight_files(checkpoint.config, INT4, CONTEXT)
    assert meter.done == sum(streaming.bytes_read(file, checkpoint) for file in planned)
    whole = sum(info.nbytes for info in checkpoint.tensors.values())
    assert whole <= meter.done <= whole + checkpoint.tensors["model.embed_tokens.weight"].nbytes


def test_a_matrix_in_many_pieces_has_the_same_bytes(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = build(tmp_path / "whole", Checkpoint.open(nano))
    monkeypatch.setattr(weight_writer, "PIECE", 3 * 256)
    monkeypatch.setattr(weight_writer, "JOB", 7 * 256)
    pieces, _ = build(tmp_path / "pieces", Checkpoint.open(nano))
    assert whole.digests == pieces.digests


def test_a_layer_may_be_packed_by_another_function(nano: Path, tmp_path: Path) -> None:
    """It gets each matrix once and whole, and what it returns is what is stored."""
    checkpoint, seen = Checkpoint.open(nano), dict[tuple[str, int | None], tuple[int, ...]]()
    work, _ = build(tmp_path / "partial", checkpoint)
    file = next(file for file in weight_files(checkpoint.config, INT4, CONTEXT) if "layer-003" in file.path)

    def pack(name: str, expert: int | None, matrix: np.ndarray, form: PartFormat) -> Packed:
        assert (name, expert) not in seen
        seen[name, expert] = matrix.shape
        return quantize(matrix, form)

    with ThreadPoolExecutor(2) as pool:
        sha256 = weight_writer.write(file, checkpoint, INT4, tmp_path / "layer", pool, pack=pack)
    assert sha256 == work.digests[file.path]
    config = checkpoint.config
    assert seen["layers.3.experts.gate_up", 5] == (2 * config.moe_intermediate_size, config.hidden_size)
    assert len(seen) == 2 * config.moe_num_experts + 4 + 3


FULL = """
import shutil, sys
from contextlib import contextmanager
from pathlib import Path
from ernie_export import pipeline
from ernie_export.checkpoint import embedded
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.errors import WorkError
from tests.test_streaming import after, build, files

disk, filler = Path(sys.argv[1]), Path(sys.argv[1]) / "filler"
def fill():
    filler.write_bytes(bytes(shutil.disk_usage(disk).free // 4096 * 4096 - 600_000))
try:
    with pipeline.told_when_full(disk):
        build(disk / "partial", Checkpoint.open(embedded.folder()), meter=after(3, fill))
    sys.exit("the disk did not fill")
except WorkError as error:
    print(error)
stood = {path.name: path.stat().st_ino for path in (disk / "partial/bundle/weights").glob("*.bin")}
assert 0 < len(stood) < 9, stood
filler.unlink()
work, told = build(disk / "partial", Checkpoint.open(embedded.folder()))
assert files(work).items() >= stood.items()
print(told[0])
"""


@pytest.mark.timeout(120)
def test_a_disk_that_fills_half_way_leaves_a_build_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()

    class Place:
        output = tmp_path / "disk" / "bundle"

    under = deprived(("small disk", "20m"), Place())  # type: ignore[arg-type]
    ran = subprocess.run(
        [*under, sys.executable, "-c", FULL, tmp_path / "disk"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    full, resumed = ran.stdout.splitlines()
    assert full.startswith(f"the disk of {tmp_path / 'disk'} is full. Free some space and run the same again")
    assert resumed.startswith("An earlier build is taken up: ")
