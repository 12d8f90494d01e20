from __future__ import annotations

import json

import pytest

from ernie_export import doctor
from ernie_export.cli.outputs import RecipesOutput, TargetsOutput
from ernie_export.doctor import Diagnosis
from ernie_export.recipe import Recipe
from ernie_export.stack import Stack
from ernie_export.target import Target


def test_targets(run) -> None:
    ran = run("targets")
    assert ran.code == 0 and "cpu" in ran.out and "JetPack 6.2, JetPack 7.2" in ran.out
    (refused,) = (line for line in ran.out.splitlines() if line.startswith("JetPack 6.2"))
    assert "planned: our kernels are compiled with CUDA 13" in refused
    found = TargetsOutput.model_validate_json(run("targets", "--json").out)
    assert (found.targets, found.stacks) == (Target.all(), Stack.all())


def test_recipes(run) -> None:
    ran = run("recipes")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["recipe", *Recipe.names()]
    found = RecipesOutput.model_validate_json(run("recipes", "--json").out)
    assert found.recipes == [Recipe.find(name) for name in Recipe.names()]


def test_doctor(run) -> None:
    ran = run("doctor")
    assert ran.code == 0 and ran.err == ""
    assert all(package.name in ran.out for package in doctor.NEEDED)
    assert Diagnosis.model_validate_json(run("doctor", "--json").out).targets[0].can_build


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_doctor_where_the_cpu_target_cannot_be_built(
    run, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", (*doctor.NEEDED, doctor.Needed("no-such-package", "1", "build")))
    ran = run("doctor", *form)
    assert ran.code == 1
    assert "no-such-package" in ran.out
    assert ran.err.startswith(
        "error: The cpu target cannot be built here (no-such-package is missing). pip install"
    )
    if form:
        assert not json.loads(ran.out)["targets"][0]["can_build"]
