"""A document that was written before a field was added is still read, and still sealed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ernie_export.errors import UserError
from ernie_export.spelling import seal_of
from ernie_export.validate import html, junit
from ernie_export.validate.baseline import Baseline
from ernie_export.validate.report import Report, WeightReport
from tests.conftest import BuiltBundle
from tests.validate.test_report import report

EARLIER = Path(__file__).parent / "reports" / "earlier.json"
"""Of ernie-nano in int4, as `build` wrote it before reports had a baseline or the weights' worst blocks."""


def sealed(content: dict[str, Any]) -> bytes:
    content = content | {"seal": seal_of(content)}
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def test_the_earlier_report_lacks_what_came_later() -> None:
    content = json.loads(EARLIER.read_bytes())
    assert "baseline" not in content and "block_error" not in content["weights"][0]
    read = Report.read(EARLIER)
    assert read.baseline is None and read.weights[0].block_error is None
    assert read.seal == content["seal"]


def test_an_earlier_report_is_shown_in_every_form() -> None:
    read = Report.read(EARLIER)
    assert read.summary_rows()
    assert b"ernie-nano" in html.render(read)
    assert b"logits.kl_mean" in junit.render(read)


def test_an_earlier_report_is_a_baseline_of_todays_build(bundle: BuiltBundle) -> None:
    today = Report.read(bundle("int4") / Report.FILE)
    judged = Baseline.read(EARLIER, fingerprint=today.checkpoint.fingerprint).judge(today)
    assert judged.baseline is not None and judged.verdict == "passed"
    assert {row.name: row.before for row in judged.baseline.rows} == {
        row.name: Report.read(EARLIER).metrics[row.name] for row in judged.baseline.rows
    }


def test_every_changed_byte_of_an_earlier_report_is_found() -> None:
    whole = EARLIER.read_bytes()
    for at in range(0, len(whole), 997):
        with pytest.raises(UserError):
            Report.parse(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], EARLIER)


def optional(model: type[BaseModel]) -> Iterator[str]:
    return (name for name, field in model.model_fields.items() if not field.is_required())


@pytest.mark.parametrize("name", sorted(set(optional(Report)) - {"seal"}))
def test_any_field_with_a_default_may_be_missing(name: str, tmp_path: Path) -> None:
    content = json.loads(report().render())
    del content[name]
    read = Report.parse(sealed(content), tmp_path / "report.json")
    assert getattr(read, name) == Report.model_fields[name].get_default(call_default_factory=True)


def test_what_a_file_says_must_be_said_as_it_would_be_written(tmp_path: Path) -> None:
    """A reader that takes "3" for 3 must not make two files of one report."""
    weights = WeightReport(name="a", source="b", relative_error=0.0, misplaced=0.0, block_error=0.5)
    content = json.loads(report(weights=[weights]).render())
    for value in ("0.5", True, 1):
        content["weights"][0]["block_error"] = value
        with pytest.raises(UserError, match="was edited"):
            Report.parse(sealed(content), tmp_path / "report.json")


def test_a_field_of_a_later_version_is_told_as_such(tmp_path: Path) -> None:
    content = json.loads(report().render()) | {"signature": "x"}
    with pytest.raises(UserError, match="holds 'signature', unknown here") as caught:
        Report.parse(sealed(content), tmp_path / "report.json")
    assert caught.value.remedy == "Use the version of ernie-export that wrote it."
