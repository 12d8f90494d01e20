"""The whole road on ernie-nano: the same bytes each time, also when it is killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_export import lock, pipeline
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.errors import UserError, WorkError
from ernie_export.recipe import Gate, LayerParts, PartFormat, Recipe
from ernie_export.target import Target
from ernie_export.validate.report import Report

BuiltBundle = Callable[[str], Path]
CPU = Target.find("cpu")

#: A build in a process of its own that is killed at the n-th sign of progress of a kind (any, if none is named).
KILLED = """
import os, signal, sys, threading
from contextlib import contextmanager
from pathlib import Path
from ernie_export import atomic, pipeline
from ernie_export.recipe import Recipe
from ernie_export.target import Target

left, kind = int(sys.argv[3]), sys.argv[4]
counting = threading.Lock()  # two threads tell of themselves, and neither may count past the other's check

def one_more(where):
    global left
    with counting:
        left -= kind in where
        os.write(1, where.encode() + bytes([10]))
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

class Step:
    def advance(self, amount=1):
        one_more("inside " + Deadly.title)

class Deadly:
    title = ""
    @contextmanager
    def step(self, title, total=None, unit=""):
        Deadly.title = title
        one_more("begin " + title)
        yield Step()
        one_more("end " + title)

for name in ("rename", "replace"):
    real = getattr(os, name)
    def between(*arguments, real=real, **named):
        one_more("before a rename in " + Deadly.title)
        real(*arguments, **named)
        one_more("after a rename in " + Deadly.title)
    setattr(os, name, between)

pipeline.build(Path(sys.argv[1]), Target.find("cpu"), Recipe.find("int4"), Path(sys.argv[2]), progress=Deadly())
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the report, whose times differ."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != Report.FILE
    }


def run_killed(nano: Path, output: Path, after: int, kind: str = "") -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(nano), str(output), str(after), kind],
        stdout=subprocess.PIPE, text=True, check=False,
        env={**os.environ, "ERNIE_EXPORT_CACHE": f"{output}.cache"},  # nothing is remembered from another run
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


def test_bundle_holds_what_it_says(bundle: BuiltBundle) -> None:
    folder = bundle("int4")
    manifest = Manifest.read(folder)
    names = set(contents(folder)) - {Manifest.FILE}
    assert names == set(manifest.files)
    assert {"model.onnx", "engine.json", "genai_config.json", "tokenizer.json", "recipe.toml"} <= names
    assert sum(name.startswith("weights/layer-") for name in names) == 6
    assert manifest.verdict == "passed" and verify(folder) == []
    claims = {claim.where for claim in manifest.claims}
    assert claims == {"built here", "ran here"}


def test_second_build_has_the_same_bytes(bundle: BuiltBundle, nano: Path, tmp_path: Path) -> None:
    """From a checkpoint that lies elsewhere, even."""
    elsewhere = shutil.copytree(nano, tmp_path / nano.name)
    result = pipeline.build(elsewhere, CPU, Recipe.find("int4"), tmp_path / "again")
    assert not result.reused and result.sample and result.sample.startswith(pipeline.SAMPLE_PROMPT)
    assert contents(result.bundle) == contents(bundle("int4"))
    assert not list(tmp_path.glob(".*"))


def test_unchanged_build_is_found(bundle: BuiltBundle, nano: Path) -> None:
    folder = bundle("int4")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = pipeline.build(nano, CPU, Recipe.find("int4"), folder, replace=True)
    assert result.reused and result.verdict == "passed" and result.report == folder / Report.FILE
    assert result.sample and result.sample.startswith(pipeline.SAMPLE_PROMPT)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_build_is_not_overwritten(bundle: BuiltBundle, nano: Path, tmp_path: Path) -> None:
    output = shutil.copytree(bundle("int4"), tmp_path / "bundle")
    recipe = Recipe.find("int4").model_copy(update={"context": 256})
    with pytest.raises(UserError, match="was made by another recipe"):
        pipeline.build(nano, CPU, recipe, output)
    assert contents(output) == contents(bundle("int4"))
    result = pipeline.build(nano, CPU, recipe, output, replace=True)
    assert result.verdict == "passed" and not result.reused
    assert "context = 256\n" in (output / "recipe.toml").read_text()
    (output / "weights" / "rope.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="is damaged"):
        pipeline.build(nano, CPU, recipe, output)
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(UserError, match="is no folder"):
        pipeline.build(nano, CPU, recipe, tmp_path / "a file")


def test_failed_gate_leaves_the_report_and_no_bundle(nano: Path, tmp_path: Path) -> None:
    recipe = Recipe.find("int4").model_copy(update={"gates": {"logits.kl_mean": Gate(max=1e-9)}})
    output = tmp_path / "bundle"
    result = pipeline.build(nano, CPU, recipe, output)
    assert result.verdict == "failed" and not output.exists()
    report = Report.read(tmp_path / "bundle.report.json")
    assert [gate.name for gate in report.gates if not gate.passed] == ["logits.kl_mean"]
    # With gates that pass, the work that is there is used.
    journal = json.loads((tmp_path / ".bundle.partial" / "journal.json").read_bytes())
    weights = tmp_path / ".bundle.partial" / "bundle" / "weights" / "layer-002.bin"
    inode = weights.stat().st_ino
    assert journal["weights/layer-002.bin"]["size"] == weights.stat().st_size
    passed = pipeline.build(nano, CPU, Recipe.find("int4"), output)
    assert passed.verdict == "passed" and (output / "weights" / "layer-002.bin").stat().st_ino == inode
    assert not (tmp_path / "bundle.report.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_boundary(bundle: BuiltBundle, nano: Path, tmp_path: Path) -> None:
    """At the begin and the end of each stage, inside it, and on both sides of a rename in it."""
    code, lines = run_killed(nano, tmp_path / "whole", -1)
    assert code == 0
    for number, moment in enumerate(dict.fromkeys(lines)):
        output = tmp_path / f"killed-{number}"
        code, _ = run_killed(nano, output, 1, moment)
        assert code == -signal.SIGKILL, moment
        assert not output.exists() or verify(output) == []
        pipeline.build(nano, CPU, Recipe.find("int4"), output)
        assert contents(output) == contents(bundle("int4")), moment
        shutil.rmtree(output)


@pytest.mark.timeout(600)
def test_killed_in_the_weight_writer_and_while_validating(
    bundle: BuiltBundle, nano: Path, tmp_path: Path
) -> None:
    """Twice on one build, then to the end."""
    output = tmp_path / "bundle"
    code, lines = run_killed(nano, output, 9, "inside Quantize and write")
    assert code == -signal.SIGKILL and lines[-1] == "inside Quantize and write"
    finished = set(json.loads((tmp_path / ".bundle.partial" / "journal.json").read_bytes()))
    assert "model.onnx" in finished and "recipe.toml" not in finished
    code, lines = run_killed(nano, output, 2, "inside Validate")
    assert code == -signal.SIGKILL and lines[-1].startswith("inside Validate")
    pipeline.build(nano, CPU, Recipe.find("int4"), output)
    assert contents(output) == contents(bundle("int4"))


def test_two_builds_do_not_share_their_work(nano: Path, tmp_path: Path) -> None:
    (tmp_path / ".bundle.partial").mkdir()
    with (
        lock.held(tmp_path / ".bundle.partial"),
        pytest.raises(WorkError, match="another run is at work"),
    ):
        pipeline.build(nano, CPU, Recipe.find("int4"), tmp_path / "bundle")


def test_no_room_is_said_before_the_work(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(WorkError, match=r"need [0-9.]+ MB, .* has room for [0-9.]+ kB"):
        pipeline.build(nano, CPU, Recipe.find("int4"), tmp_path / "bundle")
    monkeypatch.undo()
    assert not list((tmp_path / ".bundle.partial").rglob("layer-*"))


def test_layers_with_formats_of_their_own(nano: Path, tmp_path: Path) -> None:
    """The weights of each layer are those of its own format, and every operator computes with them."""
    int4 = Recipe.find("int4")
    layers = {
        "0": LayerParts(dense=PartFormat(format="fp16"), attention=PartFormat(format="int4", block_size=64)),
        "2-3": LayerParts(experts=PartFormat(format="int8", block_size=32)),
        "5": LayerParts(experts=PartFormat(format="fp32"), shared=PartFormat(format="int8", block_size=64)),
    }
    recipe = int4.model_copy(update={"parts": int4.parts.model_copy(update={"layers": layers})})
    made = pipeline.build(nano, CPU, recipe, tmp_path / "bundle")
    assert made.verdict == "passed", made.report.read_text()
    assert Recipe.read(made.bundle / "recipe.toml").parts == recipe.parts
    error = {each.name: each.relative_error for each in made.report_data.weights}
    assert error["layers.5.experts.down"] == 0 < error["layers.2.experts.down"] < 0.01
    assert error["layers.4.experts.down"] > 0.05


def test_layers_that_are_not_there(nano: Path, tmp_path: Path) -> None:
    parts = Recipe.find("int4").parts.model_copy(
        update={"layers": {"4-6": LayerParts(experts=PartFormat(format="fp16"))}}
    )
    recipe = Recipe.find("int4").model_copy(update={"parts": parts})
    with pytest.raises(UserError, match=r"says something of layers 4-6, the checkpoint has layers 0 to 5"):
        pipeline.build(nano, CPU, recipe, tmp_path / "bundle")


def test_more_context_than_promised(nano: Path, tmp_path: Path) -> None:
    recipe = Recipe.find("int4").model_copy(update={"context": 4096})
    with pytest.raises(UserError, match="a context of 4096, the checkpoint promises 2048"):
        pipeline.build(nano, CPU, recipe, tmp_path / "bundle")


def test_checkpoint_without_tokenizer(nano: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(nano, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        pipeline.build(bare, CPU, Recipe.find("int4"), tmp_path / "bundle")


def test_nan_in_one_weight_is_named(nano: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    bad = shutil.copytree(nano, tmp_path / "bad")
    name = "model.layers.3.mlp.experts.7.up_proj.weight"
    with safe_open(bad / "model.safetensors", "np") as file:
        assert name in file.keys()  # noqa: SIM118
    data = bytearray((bad / "model.safetensors").read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin = 8 + int.from_bytes(data[:8], "little") + header[name]["data_offsets"][0]
    data[begin : begin + 2] = b"\xc0\x7f"  # bf16 NaN
    (bad / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="expert 7 of layer 3 holds NaN"):
        pipeline.build(bad, CPU, Recipe.find("int4"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
