"""report.json: the bytes as they are; and what they say, sealed anew, in every form a report is shown in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from ernie_export.validate import html, junit
from ernie_export.validate.baseline import Baseline
from ernie_export.validate.report import Report
from tests.fuzz.harness import as_object, canonical

JSON = True
TOKENS = (
    b'"NaN"',
    b'"Infinity"',
    b'"baseline": {',
    b'"layers": [',
    b'"drift": [',
    b'"operators": [',
    b"null",
)


@cache
def reports() -> tuple[Report, ...]:
    from tests.validate.test_html import whole

    one = whole(layers=1, experts=2)
    return one, one.model_copy(
        update={"layers": [], "drift": [], "operators": [], "weights": [], "fault": "x"}
    )


def seeds() -> Iterator[bytes]:
    for report in reports():
        yield report.sealed().render()


def parse(data: bytes, folder: Path) -> None:
    path = folder / Report.FILE
    value = as_object(data)
    if value is None:
        path.write_bytes(data)
        Report.read(path)
        raise AssertionError("what is no JSON object was read")
    try:
        path.write_bytes(_sealed(value))
    except UnicodeEncodeError:  # half of a surrogate pair, which no file holds
        return
    report = Report.read(path)
    report.summary_rows()
    html.render(report, [("other", reports()[0])])
    ElementTree.fromstring(junit.render(report))
    baseline = Baseline.read(path, [f"{name}=1.0x" for name in list(report.metrics)[:2]])
    baseline.judge(report)


def _sealed(value: dict[str, object]) -> bytes:
    content = {key: inner for key, inner in value.items() if key != "seal"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return canonical(content | {"seal": hashlib.sha256(text.encode()).hexdigest()})
