"""kit.pyz in a Python that has numpy and ONNX Runtime alone, as on a device."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.provenance import Provenance
from ernie_export.bundle.verify import Problem, verify
from ernie_export.digest import sha256_of
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle
from tests.device.conftest import resealed
from tests.kit import making
from tests.kit.making import run
from tests.validate.planting import stored

ASKING = "Ask it"


def copied(kit: Path, folder: Path) -> Path:
    return Path(shutil.copytree(kit, folder / "kit"))


@pytest.fixture(scope="module")
def built(kit: Path, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was built from the kit; beside it a copy of the kit."""
    folder = tmp_path_factory.mktemp("built")
    ran = run(python, copied(kit, folder), "build")
    assert ran.returncode == 0, ran.stderr
    assert "verdict   passed" in ran.stdout and "the self-check: ran on target" in ran.stdout
    return folder / "kit-built"


def test_the_environment_is_bare(python: Path) -> None:
    for package in ("pydantic", "onnx", "torch", "safetensors", "ernie_export"):
        command = [python, "-P", "-c", f"import {package}"]
        ran = subprocess.run(command, capture_output=True, text=True, env=making.environment())
        assert f"No module named '{package}'" in ran.stderr


def test_what_is_built_is_a_bundle_that_says_where_it_was_seen(built: Path, kit: Path) -> None:
    assert not verify(built)
    manifest, report = Manifest.read(built), Report.read(built / Report.FILE)
    assert manifest.kit == sha256_of(kit / Manifest.FILE) == sha256_of(built / "origin" / Manifest.FILE)
    seen = {claim.where for claim in manifest.claims}
    assert {"built here", "built on target", "ran on target"} <= seen and manifest.claims == report.claims
    assert manifest.software["onnxruntime"] and "torch" not in manifest.software
    assert report.verdict == "passed" and report.metrics["routing.agreement"] > 0.85
    assert {gate.name for gate in report.gates} >= {"logits.kl_mean", "logits.same_top1", "routing.agreement"}
    assert report.speed and report.speed.prefill and report.speed.decode
    for row in report.speed.decode:
        assert row.bytes_per_second == pytest.approx(row.bytes / row.seconds)
    provenance = Provenance.read(built)
    assert provenance and provenance.digest("kit", "sha256") == manifest.kit


def test_it_shares_its_weights_with_the_kit_and_needs_no_building(built: Path) -> None:
    kit = built.with_name("kit")
    for path in (built / "weights").iterdir():
        assert os.path.samefile(path, kit / "weights" / path.name)
    assert not {"kit.json", "kit.pyz", "kit"} & {path.name for path in built.iterdir()}


def test_a_second_build_costs_nothing(built: Path, python: Path) -> None:
    before = (built / Report.FILE).stat()
    ran = run(python, built.with_name("kit"), "build")
    assert ran.returncode == 0 and "(stood there already)" in ran.stdout and ASKING not in ran.stderr
    assert (built / Report.FILE).stat() == before


def test_it_can_be_used_like_every_bundle(built: Path) -> None:
    from ernie_export.engine.open import open_engine

    assert open_engine(built).start(1, 8).feed([[1, 2, 3]]).logits[0].shape == (1, 1536)


@pytest.mark.parametrize("name", ["weights/layer-002.bin", "tokenizer.json"])
def test_a_file_that_is_not_the_kits_is_found(built: Path, tmp_path: Path, name: str) -> None:
    """However well the rest was made to fit."""
    folder = Path(shutil.copytree(built, tmp_path / "bundle"))
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(data[:-1] + b"?")
    kit = Manifest.read(folder).kit
    resealed(folder)
    manifest, report = Manifest.read(folder), Report.read(folder / Report.FILE)
    manifest.model_copy(update={"kit": kit}).write(folder / Manifest.FILE)
    digest = sha256_of(folder / Manifest.FILE)
    report.model_copy(update={"manifest_sha256": digest}).write(folder / Report.FILE)
    assert verify(folder) == [Problem(name, "is not the kit's, and was not made on the device")]


def test_check_builds_nothing(kit: Path, python: Path) -> None:
    ran = run(python, kit, "check")
    assert ran.returncode == 0 and "there is room" in ran.stdout, ran.stderr
    assert not [path for path in kit.parent.iterdir() if "built" in path.name]


def start(python: Path, kit: Path) -> subprocess.Popen[str]:
    """A build that has its engine, and asks it."""
    command = [python, kit / "kit.pyz", "build"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=making.environment(), start_new_session=True
    )
    assert process.stderr
    said = ""
    while ASKING not in said:
        more = process.stderr.read(1)
        assert more, said
        said += more
    return process


def test_killed_it_goes_on(kit: Path, python: Path, tmp_path: Path) -> None:
    kit = copied(kit, tmp_path)
    process = start(python, kit)
    process.kill()
    process.wait()
    assert not (tmp_path / "kit-built").exists()
    ran = run(python, kit, "build")
    assert ran.returncode == 0, ran.stderr
    assert "An earlier build was interrupted: engine stand already." in ran.stderr
    assert "Build the engine" not in ran.stderr and not verify(tmp_path / "kit-built")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kit", "kit-built"]


def test_interrupted_it_says_so(kit: Path, python: Path, tmp_path: Path) -> None:
    process = start(python, copied(kit, tmp_path))
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr
    said = process.stderr.read()
    assert process.wait() == 130
    assert "goes on where it stopped" in said and "Traceback" not in said
    assert not (tmp_path / "kit-built").exists()


def flipped(kit: Path, name: str) -> None:
    data = bytearray((kit / name).read_bytes())
    data[len(data) // 2] ^= 1
    (kit / name).write_bytes(data)


def edited(kit: Path, name: str, old: bytes, new: bytes) -> None:
    data = (kit / name).read_bytes()
    assert old in data
    (kit / name).write_bytes(data.replace(old, new))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the weights": (
        lambda kit: flipped(kit, "weights/layer-002.bin"),
        "is damaged: weights/layer-002.bin: does not have the SHA-256 that the manifest lists. Fetch the kit again.",
    ),
    "a byte of the program": (
        lambda kit: flipped(kit, "kit.pyz"),
        "kit.pyz is not the one that the kit's manifest lists. Fetch the kit again.",
    ),
    "a byte of the graph": (
        lambda kit: flipped(kit, "kit/as-it-ships.onnx"),
        "is damaged: kit/as-it-ships.onnx: does not have the SHA-256 that the manifest lists.",
    ),
    "a file missing": (
        lambda kit: (kit / "selfcheck.safetensors").unlink(),
        "selfcheck.safetensors: is missing",
    ),
    "a file too many": (lambda kit: (kit / "numpy.py").write_text(""), "numpy.py: is not in the manifest"),
    "a file cut off": (
        lambda kit: os.truncate(kit / "weights" / "layer-003.bin", 100),
        "weights/layer-003.bin: has 100 bytes, the manifest lists",
    ),
    "a link in place of a file": (
        lambda kit: ((kit / "config.json").unlink(), (kit / "config.json").symlink_to("/etc/hostname")),
        "config.json: is a symbolic link",
    ),
    "no manifest": (lambda kit: (kit / "manifest.json").unlink(), "is no kit: it holds no manifest.json"),
    "a manifest that is no JSON": (
        lambda kit: (kit / "manifest.json").write_text("{"),
        "manifest.json is damaged (it is no JSON)",
    ),
    "a manifest of nothing": (
        lambda kit: (kit / "manifest.json").write_text("{}"),
        "is damaged (KeyError: 'files')",
    ),
    "a report that was edited": (
        lambda kit: edited(kit, "report.json", b'"verdict": "passed"', b'"verdict": "failed"'),
        "report.json was edited: its seal is broken",
    ),
    "another manifest": (
        lambda kit: edited(kit, "manifest.json", b'"recipe": "int4"', b'"recipe": "int8"'),
        "report.json was sealed over another manifest",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_kit(kit: Path, python: Path, tmp_path: Path, kind: str) -> None:
    damage, words = DAMAGE[kind]
    damage(kit := copied(kit, tmp_path))
    ran = run(python, kit, "build")
    assert ran.returncode == 2 and words in ran.stderr, ran.stderr
    assert ran.stderr.count("error:") == 1 and "Traceback" not in ran.stderr and ran.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


def test_a_program_that_was_cut_off_does_not_begin(kit: Path, python: Path, tmp_path: Path) -> None:
    """Python itself says that it is no program; nothing of it runs."""
    os.truncate(copied(kit, tmp_path) / "kit.pyz", 100_000)
    ran = run(python, tmp_path / "kit", "build")
    assert ran.returncode and "Traceback" not in ran.stderr and ran.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


def test_a_kit_for_another_machine(bundle: BuiltBundle, python: Path, tmp_path: Path) -> None:
    here = platform.machine()
    other = next(target for machine, target in making.HERE.items() if machine != here)
    kit = making.packed(bundle("int4"), tmp_path / "kit", other)
    ran = run(python, kit, "build")
    assert ran.returncode == 2 and f", this machine is {here}. Copy it to the device" in ran.stderr


@pytest.mark.parametrize("there", [[], ["onnxruntime"], ["numpy"]])
def test_what_is_not_installed_is_told_with_how_to_get_it(
    kit: Path, tmp_path: Path, there: list[str]
) -> None:
    ran = run(making.bare(tmp_path / "venv", *there), kit, "check")
    missing = "numpy" if "numpy" not in there else "ONNX Runtime 1.31+"
    assert ran.returncode == 2, ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if not line.startswith("Verify")]
    assert f"needs {missing}, which does not load here (it is not installed)" in line
    assert line.endswith("Get it: python3 -m pip install numpy 'onnxruntime>=1.31'.")


def test_a_bundle_is_no_kit(bundle: BuiltBundle, kit: Path, python: Path) -> None:
    ran = run(python, kit, "build", bundle("int4"))
    assert ran.returncode == 2 and "is a bundle and no kit" in ran.stderr


@pytest.mark.parametrize("words", [["build", "--context", "9999"], ["build", "--context", "8"]])
def test_a_context_that_it_does_not_take(kit: Path, python: Path, words: list[str]) -> None:
    ran = run(python, kit, *words)
    assert ran.returncode == 2 and "this kit takes 512 to 2048" in ran.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "The following arguments are required: COMMAND"),
        (["bulid"], "invalid choice: 'bulid'"),
        (["build", "--threads", "none"], "'none' is no number above 0"),
        (["build", "/nowhere"], "/nowhere is no kit"),
    ],
)
def test_a_wrong_command_line_is_one_line(kit: Path, python: Path, words: list[str], message: str) -> None:
    ran = run(python, kit, *words)
    assert ran.returncode == 2 and message in ran.stderr and ran.stderr.count("\n") == 1


def test_something_else_stands_there(kit: Path, python: Path, tmp_path: Path) -> None:
    for output, words in ((kit, "was not built from this kit"), (tmp_path, "is no bundle")):
        ran = run(python, kit, "build", "--output", output)
        assert ran.returncode == 2 and words in ran.stderr


def test_an_engine_that_talks_nonsense_is_not_sealed(kit: Path, python: Path, tmp_path: Path) -> None:
    """The fault is in the kit that was sealed, so that no digest tells of it."""
    kit = copied(kit, tmp_path)
    stored("layers.1.experts.down", lambda values: values[::-1])(kit)
    resealed(kit)
    ran = run(python, kit, "build")
    assert ran.returncode == 1 and "does not answer here as the checkpoint's own model does" in ran.stderr
    report = Report.read(tmp_path / "kit-built.report.json")
    assert report.verdict == "failed" and report.speed is None and not (tmp_path / "kit-built").exists()


def test_a_ceiling_on_the_time_of_a_token(kit: Path, python: Path, tmp_path: Path) -> None:
    kit = copied(kit, tmp_path)
    ran = run(python, kit, "build", "--max-token-ms", "0.00001")
    assert (
        ran.returncode == 1 and "latency.token_ms is" in ran.stderr and "must be at most 1e-05" in ran.stderr
    )
    ran = run(python, kit, "build", "--max-token-ms", "60000")  # what else ran there may have ended
    assert ran.returncode == 0 and ASKING in ran.stderr, ran.stderr
    gates = {gate.name: gate for gate in Report.read(tmp_path / "kit-built" / Report.FILE).gates}
    assert gates["latency.token_ms"].max == 60_000 and gates["latency.token_ms"].passed
    assert not (tmp_path / "kit-built.report.json").exists()
