"""docs/schemas says what is written: no less, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

from ernie_export.cli import main
from ernie_export.cli.app import app
from ernie_export.cli.schemas import SCHEMAS, write
from ernie_export.distribute.pull import Pulled
from ernie_export.distribute.push import Pushed
from ernie_export.distribute.ssh_rollout import Deployed, HostResult
from tests.conftest import BuiltBundle
from tests.validate.test_html import whole

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas"
EARLIER = Path(__file__).parents[1] / "validate" / "reports" / "earlier.json"


def check(name: str, text: str | bytes) -> Any:
    document = json.loads(text)
    schema = json.loads((PUBLISHED / f"{name}.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(document)
    return document


def test_the_published_schemas_are_those_of_the_code(tmp_path: Path) -> None:
    write(tmp_path, lambda path: None)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in PUBLISHED.iterdir()}, "run `make schemas`"
    for data in made.values():
        jsonschema.Draft202012Validator.check_schema(json.loads(data))


def commands_with_json(command: Any, name: str = "") -> Iterator[str]:
    """Of a group as `group-command`."""
    for below, inner in getattr(command, "commands", {}).items():
        yield from commands_with_json(inner, f"{name}-{below}".lstrip("-"))
    if any("--json" in option.opts for option in command.params):
        yield name


def test_every_command_with_json_has_a_schema() -> None:
    with_json = set(commands_with_json(typer.main.get_command(app)))
    documents = {"manifest", "report", "engine", "calibration", "kit"}
    assert with_json - {"validate"} == SCHEMAS.keys() - documents  # validate prints a report


def test_the_files_of_a_bundle(bundle: BuiltBundle) -> None:
    for name in ("manifest", "report", "engine"):
        check(name, (bundle("int4") / f"{name}.json").read_bytes())
    check("calibration", (bundle("int4-gptq") / "calibration.json").read_bytes())


def test_reports_of_every_kind() -> None:
    check("report", EARLIER.read_bytes())
    odd = whole(metrics={"logits.kl_mean": math.nan, "logits.kl_p99": math.inf})
    assert check("report", odd.sealed().render())["metrics"]["logits.kl_mean"] == "NaN"
    wrong = json.loads(odd.sealed().render()) | {"verdict": "perfect"}
    with pytest.raises(jsonschema.ValidationError):
        check("report", json.dumps(wrong))


SAY = ["--prompt", "The list is", "--max-tokens", "2"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("inspect", []),
        ("targets", []),
        ("recipes", []),
        ("doctor", []),
        ("plan", ["--like", "21b", "--target", "jetson-orin-nano-8gb"]),
        ("generate", ["BUNDLE", *SAY]),
        ("generate", ["BUNDLE", *SAY, "--prompt", "import os"]),
    ],
)
def test_what_json_prints(
    name: str, arguments: list[str], bundle: BuiltBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(bundle("int4")) if argument == "BUNDLE" else argument for argument in arguments]
    main([name, *given, "--json"])
    check(name, capsys.readouterr().out)


def test_what_build_prints_of_a_bundle_that_stands_there(
    bundle: BuiltBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--target", "cpu", "--output", str(bundle("int4")), "--json"]) == 0
    assert check("build", capsys.readouterr().out)["reused"] is True


def test_push_and_pull() -> None:
    check("push", Pushed(address="a@b", tag=None, sent=1, there=2).model_dump_json())
    check("pull", Pulled(address="a@b", output="c", received=1, there=2).model_dump_json())


def test_deploy() -> None:
    hosts = [
        HostResult(host="a", canary=True, outcome="installed", generation=2, sent=1, seconds=0.5),
        HostResult(host="b", canary=False, outcome="failed", cause="A cause", remedy="A remedy."),
    ]
    check("deploy", Deployed(bundle="c", manifest_sha256="0" * 64, size=1, hosts=hosts).model_dump_json())
