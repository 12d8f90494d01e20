"""A calibrated build on ernie-nano: the same bytes each time, also when it is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export import pipeline
from ernie_export.calibrate.record import CalibrationRecord
from ernie_export.calibrate.text import DEFAULT
from ernie_export.errors import UserError
from ernie_export.quantize import gptq
from ernie_export.recipe import Calibration, PartFormat, Recipe
from ernie_export.target import Target
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle
from tests.validate.planting import assembled

CPU = Target.find("cpu")
QUICK = Calibration(method="gptq", tokens=1024, window=256)
RECIPE = Recipe.find("int4-gptq").model_copy(update={"calibration": QUICK})

#: Makes the files in a process of its own that is killed when it has made so many layers.
KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from ernie_export import pipeline
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.recipe import Recipe
from ernie_export.target import Target

class Step:
    def __init__(self, left):
        self.left = left
    def advance(self, amount=1):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

class Deadly:
    @contextmanager
    def step(self, title, total=None, unit=""):
        yield Step(int(sys.argv[4]) if title == "Calibrate" else -1)

source, recipe = Checkpoint.open(Path(sys.argv[1])), Recipe.read(Path(sys.argv[2]))
work = pipeline.Work(Path(sys.argv[3]), Deadly())
pipeline.write_graph(work, source, recipe, Target.find("cpu"))
pipeline.make_weights(work, source, recipe, pipeline.calibration_text(source, recipe, None))
"""


def weights(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "weights").iterdir(), folder / CalibrationRecord.FILE]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assembled(nano, RECIPE, tmp_path_factory.mktemp("whole") / "partial")


def test_a_killed_build_goes_on_at_its_layer_and_ends_the_same(
    nano: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, partial = RECIPE.model_copy(update={"context": 2048}), tmp_path / "partial"
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    partial.mkdir()
    arguments = [str(nano), str(tmp_path / "recipe.toml"), str(partial)]
    environment = {**os.environ, "ERNIE_EXPORT_CACHE": str(tmp_path / "cache")}
    for layer in (2, 4):  # each makes two
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments, "2"], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        assert json.loads((partial / "calibration" / "state.json").read_bytes())["layer"] == layer
    rounded: list[int] = []
    real = gptq.triangular_root
    monkeypatch.setattr(gptq, "triangular_root", lambda h: rounded.append(len(h)) or real(h))
    folder = tmp_path / "partial" / "bundle"
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.progress import Silent

    work, source = pipeline.Work(partial, Silent()), Checkpoint.open(nano)
    pipeline.make_weights(work, source, recipe, pipeline.calibration_text(source, recipe, None))
    assert len(rounded) == 2 * (4 + 3 + 2 * 16)  # the last two layers: attention, shared, experts
    assert weights(folder) == weights(whole)


def test_it_differs_from_rounding_to_nearest_in_the_codes_alone(bundle: BuiltBundle, whole: Path) -> None:
    plain = {path.name: path.read_bytes() for path in (bundle("int4") / "weights").iterdir()}
    mine = weights(whole)
    record = CalibrationRecord.model_validate_json(mine.pop(CalibrationRecord.FILE))
    same = {name for name in plain if plain[name] == mine[name]}
    assert plain.keys() == mine.keys() and same == {"embedding.bin", "head.bin", "rope.bin"}
    assert {len(data) for data in plain.values()} == {len(data) for data in mine.values()}
    assert record.settings == QUICK and record.text == "calibration.txt"
    names = [tensor.name for tensor in record.tensors]
    assert len(names) == len(set(names)) == 6 * 4 + 3 + 5 * (3 + 2)
    assert all(tensor.error < 0.9 for tensor in record.tensors if tensor.tokens)


def test_a_head_with_weights_of_its_own_is_calibrated(nano: Path, tmp_path: Path) -> None:
    parts = RECIPE.parts.model_copy(update={"head": PartFormat(format="int4", block_size=64)})
    recipe = RECIPE.model_copy(update={"parts": parts})
    folder = assembled(nano, recipe, tmp_path / "partial")
    record = CalibrationRecord.read(folder)
    assert record and record.tensors[-1].name == "head.weight"
    assert record.tensors[-1].error < 0.9 and record.tensors[-1].tokens == QUICK.tokens


@pytest.mark.timeout(600)
def test_the_bundle_says_on_what_it_was_calibrated(nano: Path, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"least_tokens": 200})
    recipe = RECIPE.model_copy(update={"calibration": settings, "gates": {}})
    mine = tmp_path / "mine.txt"
    mine.write_text(DEFAULT.read_text("utf-8")[100_000:110_000], "utf-8")
    output = tmp_path / "bundle"
    result = pipeline.build(nano, CPU, recipe, output, calibration=mine)
    record = CalibrationRecord.read(output)
    assert record and record.text == "mine.txt"
    missed = {(tensor.name, expert) for tensor in record.tensors for expert in tensor.rounded}
    assert missed
    (note,) = [note for note in Report.read(result.report).notes if note.startswith("Calibrated")]
    assert note == record.summary() and f"{len(missed) // 2} experts" in note
    assert pipeline.build(nano, CPU, recipe, output, calibration=mine).reused
    with pytest.raises(UserError, match="was calibrated on another text"):
        pipeline.build(nano, CPU, recipe, output)
    with pytest.raises(UserError, match="does not calibrate, so nothing would read"):
        pipeline.build(nano, CPU, Recipe.find("int4"), tmp_path / "other", calibration=mine)
