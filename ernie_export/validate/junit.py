"""A report as JUnit XML, as CI systems read it: a case for each gate and each number of the baseline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ernie_export.validate.report import Report

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not."""


class _Case(NamedTuple):
    suite: str
    name: str
    failure: str
    """Empty where it passed."""


def render(report: Report) -> bytes:
    """UTF-8; the same report gives the same bytes."""
    cases = [*_gates(report), *_baseline(report)]
    seconds = f"{sum(report.timings.values()):.3f}"
    root = Element("testsuites", {"name": "ernie-export validate", "time": seconds, **_counts(cases)})
    for name in dict.fromkeys(case.suite for case in cases):
        suite = [case for case in cases if case.suite == name]
        about = {
            "name": name,
            "timestamp": _clean(report.time.removesuffix("+00:00")),
            "time": seconds if name == "gates" else "0",
        }
        element = SubElement(root, "testsuite", about | _counts(suite))
        properties = SubElement(element, "properties")
        for key, value in _properties(report):
            SubElement(properties, "property", name=key, value=_clean(value))
        for case in suite:
            _add(element, case, report)
        SubElement(element, "system-out").text = _clean("\n".join(_said(report)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _gates(report: Report) -> Iterator[_Case]:
    for gate in report.gates:
        yield _Case("gates", gate.name, "" if gate.passed else gate.message)


def _baseline(report: Report) -> Iterator[_Case]:
    for row in report.baseline.rows if report.baseline else ():
        value = "was not measured" if row.value is None else f"is {row.value:.6g}"
        failure = f"{row.name} {value}, was {row.before:.6g}, and may be {row.bound:.6g} ({row.allowed})"
        yield _Case("baseline", row.name, "" if row.passed else failure)


def _add(suite: Element, case: _Case, report: Report) -> None:
    classname = ".".join((report.checkpoint.name, report.recipe, report.target, case.suite))
    element = SubElement(suite, "testcase", classname=_clean(classname), name=_clean(case.name), time="0")
    if case.failure:
        failure = SubElement(element, "failure", message=_clean(case.failure), type=case.suite)
        failure.text = _clean("\n".join((case.failure, *_said(report))))


def _counts(cases: list[_Case]) -> dict[str, str]:
    failures = sum(bool(case.failure) for case in cases)
    return {"tests": str(len(cases)), "failures": str(failures), "errors": "0"}


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    yield "verdict", report.verdict
    yield "checkpoint", report.checkpoint.name
    yield "fingerprint", report.checkpoint.fingerprint
    yield "recipe", report.recipe
    yield "target", report.target
    yield (
        "inputs",
        f"{report.inputs.windows} windows of {report.inputs.tokens} tokens of {report.inputs.source}",
    )
    yield "tool", report.tool
    if report.baseline:
        yield "baseline", f"{report.baseline.recipe} for {report.baseline.target} of {report.baseline.time}"


def _said(report: Report) -> Iterator[str]:
    if report.fault:
        yield f"The fault begins at {report.fault}"
    yield from report.notes


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\ufffd", text)
