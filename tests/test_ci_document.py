"""docs/ci.md: its files are YAML of the right shape, and every command in them does what the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from ernie_export.recipe import Gate
from ernie_export.validate.baseline import DEFAULTS
from ernie_export.validate.gates import evaluate
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle
from tests.validate.test_html import whole

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "ci.md").read_text("utf-8")
GITHUB, GITLAB = (
    yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
)
STEPS: list[dict[str, Any]] = GITHUB["jobs"]["export"]["steps"]
CONSOLE = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
LEFT = ["junit.xml", "report.html", "report.json"]


def runs(steps: list[dict[str, Any]]) -> Iterator[str]:
    return (step["run"] for step in steps if "run" in step and "pip install" not in step["run"])


def test_both_files_are_of_their_kind() -> None:
    assert set(GITHUB) == {"name", True, "env", "jobs"}  # YAML 1.1 takes `on` for true, and GitHub knows it
    assert all(("run" in step) != ("uses" in step) for step in STEPS)
    assert sorted(STEPS[-1]["with"]["path"].split()) == LEFT
    assert set(GITLAB) == {"stages", "variables", "export"} and GITLAB["export"]["stage"] in GITLAB["stages"]
    assert sorted(GITLAB["export"]["artifacts"]["paths"]) == LEFT
    assert GITLAB["export"]["artifacts"]["reports"]["junit"] == "junit.xml"
    assert GITLAB["variables"].keys() == GITHUB["env"].keys()


class Runner:
    """A folder, in which a shell runs commands as a CI system does."""

    def __init__(self, folder: Path, checkpoint: Path):
        self.folder = folder
        program = folder / "bin" / "ernie-export"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ernie_export "$@"\n')
        program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(program.parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "CHECKPOINT": str(checkpoint),
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        }

    def run(self, command: str) -> int:
        ran = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            check=False,
        )
        return ran.returncode

    def must_have_left(self) -> None:
        assert ElementTree.parse(self.folder / "junit.xml").getroot().tag == "testsuites"
        assert (self.folder / "report.html").read_text("utf-8").lower().startswith("<!doctype html>")


@pytest.mark.timeout(300)
def test_a_good_build_goes_through_both(tmp_path: Path, nano: Path, bundle: BuiltBundle) -> None:
    """The baseline by hand first; then the steps of GitHub, and the script of GitLab, in their order."""
    runner = Runner(tmp_path, nano)
    shutil.copytree(bundle("int4"), tmp_path / "bundle")  # which `build` finds, and so has nothing to do
    for command in CONSOLE:
        assert runner.run(command) == 0, command
    for command in runs([step for step in STEPS if "failure()" not in step.get("if", "")]):
        assert runner.run(command) == 0, command
    runner.must_have_left()
    assert "KL divergence" in (tmp_path / "summary.md").read_text("utf-8")
    baseline = Report.read(tmp_path / "report.json").baseline
    assert baseline is not None
    assert {row.name: row.allowed for row in baseline.rows} == DEFAULTS | {"logits.kl_mean": "1.2x"}
    said = [" ".join(command.split()) for command in runs(STEPS)]
    for command in GITLAB["export"]["script"][1:]:
        assert " ".join(command.split()) in said


@pytest.mark.timeout(300)
def test_a_bad_build_still_leaves_what_tells_why(tmp_path: Path, nano: Path) -> None:
    """No bundle, but the report of it, in both forms."""
    runner = Runner(tmp_path, nano)
    metrics = {"logits.kl_mean": 0.5}
    gates = evaluate(metrics, {"logits.kl_mean": Gate(max=0.02)})
    whole(verdict="failed", metrics=metrics, gates=gates).write(tmp_path / "bundle.report.json")
    (why,) = (step["run"] for step in STEPS if "failure()" in step.get("if", ""))
    for command in (why, *GITLAB["export"]["after_script"]):
        for name in ("junit.xml", "report.html"):
            (tmp_path / name).unlink(missing_ok=True)
        assert runner.run(command) == 0
        runner.must_have_left()
        assert 'message="logits.kl_mean is' in (tmp_path / "junit.xml").read_text("utf-8")


def test_what_may_be_lost_is_what_the_code_says() -> None:
    assert dict(re.findall(r"^\| `([a-z0-9_.]+)` \| (\S+) \|$", PAGE, re.MULTILINE)) == DEFAULTS


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
