from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ernie_export.checkpoint import embedded
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.validate import run as validate_run
from ernie_export.validate.report import Report, Source
from tests.cli.test_validate import sealed  # noqa: F401  a fixture


def test_a_report_is_shown_and_written_in_both_forms(run, report, tmp_path: Path) -> None:
    report(False).write(tmp_path / "old.report.json")
    page, xml = tmp_path / "page.html", tmp_path / "junit.xml"
    ran = run("report", tmp_path / "old.report.json", "--html", page, "--junit", xml)
    assert (ran.code, ran.err) == (0, "")
    assert "Same likeliest token" in ran.out
    assert page.read_text().startswith("<!doctype html>")
    assert ElementTree.parse(xml).getroot().get("failures") == "1"


def test_a_bundle_shows_what_its_manifest_claims(run, sealed: Path) -> None:  # noqa: F811
    page = sealed.with_name("page.html")
    assert run("report", sealed, "--html", page).code == 0
    assert "Passed" in page.read_text()


def test_other_builds_stand_beside_it(run, report, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    found = report(True).model_copy(update={"metrics": {"logits.kl_mean": 0.1}})
    found.write(tmp_path / "report.json")
    found.write(tmp_path / "big" / "report.json")
    found.write(tmp_path / "small.report.json")
    page = tmp_path / "page.html"
    others = ["--compare", tmp_path / "big" / "report.json", "--compare", tmp_path / "small.report.json"]
    assert run("report", tmp_path / "report.json", "--html", page, *others).code == 0
    assert all(f'<th scope="row">{name}</th>' in page.read_text() for name in ("this build", "big", "small"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--html", "no/such/page.html"], "there is no such folder"),
        (["--junit", "."], "it is a folder"),
        (["--compare", "report.json"], "no page to show other builds on"),
        (["--html", "page.html", "--compare", "none.json"], "cannot be read"),
        (["--html", "page.html", "--compare", "other.json"], "another checkpoint"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    run, report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    report(True).write(tmp_path / "report.json")
    other = Source(name="other", fingerprint="0" * 64, architecture="Ernie4_5ForCausalLM")
    report(True).model_copy(update={"checkpoint": other}).write(tmp_path / "other.json")
    ran = run("report", "report.json", *options)
    assert ran.code == 2 and says in ran.err and ran.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "report.json"]


@pytest.fixture
def measured(report, monkeypatch: pytest.MonkeyPatch):
    """measured(kl): what the next validation of the embedded checkpoint will find."""
    source = Source(
        name="nano", fingerprint=Checkpoint.open(embedded.folder()).fingerprint(None), architecture="x"
    )

    def measured(kl: float) -> Report:
        found = report(True).model_copy(update={"metrics": {"logits.kl_mean": kl}, "checkpoint": source})
        monkeypatch.setattr(validate_run, "validate", lambda *_, **__: found)
        return found

    return measured


def test_validate_against_a_baseline(run, sealed: Path, measured, tmp_path: Path) -> None:  # noqa: F811
    base = tmp_path.with_name(f"{tmp_path.name}-base.json")
    measured(0.01)
    assert run("validate", sealed, "--report", base).code == 0
    assert Report.read(base).manifest_sha256

    ran = run("validate", sealed, "--baseline", base)
    assert (ran.code, ran.err) == (0, "")
    assert "1.1x+1e-6" in ran.out

    measured(0.012)
    page, xml = base.with_suffix(".html"), base.with_suffix(".xml")
    ran = run("validate", sealed, "--baseline", base, "--html", page, "--junit", xml)
    assert ran.code == 1
    assert ran.err == (
        "error: logits.kl_mean fell further below the baseline than is allowed. "
        "Find what changed since, or allow it with --allow logits.kl_mean=…\n"
    )
    assert "Against the baseline" in page.read_text() and "Failed" in page.read_text()
    assert ElementTree.parse(xml).getroot().get("failures") == "1"

    assert run("validate", sealed, "--baseline", base, "--allow", "logits.kl_mean=1.3x").code == 0


def test_what_no_baseline_can_be(run, sealed: Path, measured, report, tmp_path: Path) -> None:  # noqa: F811
    measured(0.01)
    ran = run("validate", sealed, "--allow", "logits.kl_mean=2x")
    assert ran.code == 2 and "--baseline" in ran.err
    other = tmp_path.with_name(f"{tmp_path.name}-other.json")
    report(True).write(other)
    ran = run("validate", sealed, "--baseline", other)
    assert ran.code == 2 and "another checkpoint" in ran.err
    shutil.copy(sealed / "recipe.toml", other)
    ran = run("validate", sealed, "--baseline", other)
    assert ran.code == 2 and "damaged" in ran.err
