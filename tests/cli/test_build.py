"""What `build` asks of the pipeline, and how it tells what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export import pipeline
from ernie_export.checkpoint import embedded
from ernie_export.cli.outputs import BuildOutput
from ernie_export.pipeline import BuildResult
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.target import Target


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, report):
    """The pipeline gives this result; returns what it was asked for."""
    asked: list[tuple] = []

    def pretend(
        passed: bool = True, reused: bool = False, sample: str | None = "A list [is] a sequence."
    ) -> list[tuple]:
        def build(checkpoint, target, recipe, output, replace, progress, tell, calibration) -> BuildResult:
            asked.append((checkpoint, target, recipe, output, replace, calibration, progress))
            return BuildResult(
                output,
                output / "report.json",
                "passed" if passed else "failed",
                reused,
                report(passed),
                sample,
            )

        monkeypatch.setattr(pipeline, "build", build)
        return asked

    return pretend


def test_the_defaults(run, built, tmp_path: Path) -> None:
    asked = built()
    assert run("build", "--target", "cpu", "--output", tmp_path / "b").code == 0
    *most, progress = asked[0]
    assert most == [embedded.folder(), Target.find("cpu"), Recipe.find("int4"), tmp_path / "b", False, None]
    assert isinstance(progress, Silent)


def test_what_is_given_is_passed_on(run, built, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(Recipe.find("int8").to_toml())
    asked = built()
    run("build", tmp_path, "--target", "cpu", "--recipe", tmp_path / "r.toml", "--output", "b", "--replace")
    assert asked[0][:5] == (tmp_path, Target.find("cpu"), Recipe.find("int8"), Path("b"), True)


def test_a_person_sees_verdict_bundle_report_and_a_sentence(run, built) -> None:
    built(reused=True)
    ran = run("build", "--target", "cpu", "--output", "b")
    assert (ran.code, ran.err) == (0, "")
    *measured, _, verdict, bundle, report, sample = ran.out.splitlines()
    assert [line.split("  ")[0] for line in measured] == ["measured", "Same likeliest token"]
    assert verdict.split() == ["verdict", "passed"]
    assert bundle.split(maxsplit=1) == ["bundle", "b (stood there already)"]
    assert report.split() == ["report", "b/report.json"]
    assert sample.split(maxsplit=1) == ["sample", "A list [is] a sequence."]


def test_a_script_gets_json(run, built) -> None:
    built()
    ran = run("build", "--target", "cpu", "--output", "b", "--json")
    assert BuildOutput.model_validate_json(ran.out) == BuildOutput(
        bundle="b",
        report="b/report.json",
        verdict="passed",
        reused=False,
        failed_gates=[],
        sample="A list [is] a sequence.",
    )


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_failed_gate_is_shown_and_exit_1(run, built, form: list[str]) -> None:
    built(passed=False, sample=None)
    ran = run("build", "--target", "cpu", "--output", "b", *form)
    assert ran.code == 1
    assert ran.err == "error: 1 of 1 gates failed (logits.same_top1). The report is b/report.json.\n"
    if form:
        output = BuildOutput.model_validate_json(ran.out)
        assert (output.bundle, output.verdict, output.failed_gates) == (None, "failed", ["logits.same_top1"])
    else:
        assert "50.00%" in ran.out and "≥ 90.00%" in ran.out
        assert "bundle" not in ran.out and "sample" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cqu"], "error: No target is named 'cqu'. Did you mean cpu? Known: cpu, "),
        (["--target", "gb10"], "error: The target gb10 is planned: nothing can be built for it yet. "),
        (["--target", "cpu", "--recipe", "int5"], "error: No recipe is named 'int5'. Did you mean"),
    ],
)
def test_an_unknown_name_ends_before_any_work(run, built, arguments: list[str], message: str) -> None:
    asked = built()
    ran = run("build", *arguments, "--output", "b")
    assert (ran.code, ran.out, asked) == (2, "", [])
    assert ran.err.startswith(message)
