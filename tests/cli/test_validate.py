from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.checkpoint import embedded
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.validate import run as validate_run
from ernie_export.validate.report import Report, Source


@pytest.fixture
def sealed(tmp_path: Path, report) -> Path:
    """A bundle that holds a recipe and nothing else, with a true manifest and report."""
    text = Recipe.find("int8").to_toml().encode()
    (tmp_path / "recipe.toml").write_bytes(text)
    fingerprint = Checkpoint.open(embedded.folder()).fingerprint(Silent())
    Manifest(
        checkpoint=Source(name="tiny", fingerprint=fingerprint, architecture="Ernie4_5_MoeForCausalLM"),
        recipe="int8",
        target="cpu",
        files={"recipe.toml": FileEntry(size=len(text), sha256=hashlib.sha256(text).hexdigest())},
        software={},
        verdict="passed",
        claims=[],
    ).write(tmp_path / Manifest.FILE)
    digest = hashlib.sha256((tmp_path / Manifest.FILE).read_bytes()).hexdigest()
    report(True).model_copy(update={"manifest_sha256": digest}).write(tmp_path / Report.FILE)
    return tmp_path


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_validate_judges_by_the_recipe_of_the_bundle(
    run, sealed: Path, report, monkeypatch: pytest.MonkeyPatch, passed: bool, form: list[str]
) -> None:
    asked = []

    def validate(folder, checkpoint, gates, progress, *, recipe, target, way, keep) -> Report:
        asked.append((folder, checkpoint, gates, recipe, target, way, keep))
        return report(passed)

    monkeypatch.setattr(validate_run, "validate", validate)
    ran = run("validate", sealed, *form)
    assert asked == [(sealed, embedded.folder(), Recipe.find("int8").gates, "int8", "cpu", None, None)]
    assert ran.code == (0 if passed else 1)
    assert ran.err == (
        ""
        if passed
        else "error: 1 of 1 gates failed (logits.same_top1). Build with a recipe that keeps more bits.\n"
    )
    if form:
        sealed_over = hashlib.sha256((sealed / Manifest.FILE).read_bytes()).hexdigest()
        printed = Report.model_validate_json(ran.out)
        assert printed == report(passed).model_copy(update={"manifest_sha256": sealed_over})
    else:
        assert "Same likeliest token" in ran.out

    elsewhere = shutil.copytree(embedded.folder(), sealed.with_name(f"{sealed.name}-copy"))
    run("validate", sealed, "--against", elsewhere)
    assert asked[-1][1] == elsewhere
    run("validate", sealed, "--way", "layers", "--keep", elsewhere / "kept")
    assert asked[-1][-2:] == ("layers", elsewhere / "kept")
    assert run("validate", sealed, "--way", "sideways").code == 2

    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    ran = run("validate", sealed, "--against", elsewhere)
    assert ran.code == 2 and "was not built from" in ran.err and len(asked) == 3


@pytest.mark.parametrize("command", ["validate", "verify"])
def test_a_folder_that_is_no_bundle(run, tmp_path: Path, command: str) -> None:
    ran = run(command, tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ") and Manifest.FILE in ran.err and ran.err.count("\n") == 1


def test_verify_of_a_whole_bundle(run, sealed: Path) -> None:
    ran = run("verify", sealed)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("1 files, ") and ran.out.endswith("B: all as they were built\n")


def test_verify_tells_where_a_bundle_came_from(run, bundle) -> None:
    made = run("verify", bundle("int4")).out.splitlines()[1]
    assert made.startswith("built from ernie-nano (fingerprint ") and made.endswith(", as int4 for cpu")


def test_verify_names_what_is_wrong(run, sealed: Path) -> None:
    size = (sealed / "recipe.toml").stat().st_size
    (sealed / "recipe.toml").write_text("name = 'other'")
    ran = run("verify", sealed)
    assert ran.code == 1
    assert [line.split()[0] for line in ran.out.splitlines()] == ["file", "recipe.toml"]
    said = f"recipe.toml: has 14 bytes, the manifest lists {size}"
    assert ran.err == f"error: {sealed} is not what was built: {said}. Fetch or build the bundle again.\n"
