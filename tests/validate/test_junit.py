"""The file against what CI systems agree on: the structure of the JUnit XSD of Jenkins' xunit plugin."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from hypothesis import given
from hypothesis import strategies as st

from ernie_export.validate.baseline import Baseline
from ernie_export.validate.gates import GateResult
from ernie_export.validate.junit import render
from ernie_export.validate.report import Report, Source
from tests.validate.test_baseline import measured
from tests.validate.test_report import report

REQUIRED = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "time", "timestamp"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "classname", "time"},
    "failure": {"message", "type"},
    "system-out": set(),
}
CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["properties", "testcase", "system-out"],
    "properties": ["property"],
    "testcase": ["failure"],
}


def check(element: Element) -> None:
    """Raises AssertionError unless the element and all below it are as the schema has them."""
    assert set(element.attrib) == REQUIRED[element.tag]
    allowed = CHILDREN.get(element.tag, [])
    order = [allowed.index(child.tag) for child in element]
    assert order == sorted(order)
    for name in {"tests", "failures", "errors"} & set(element.attrib):
        assert re.fullmatch("[0-9]+", element.attrib[name])
    if "time" in element.attrib:
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", element.attrib["time"])
    if element.tag in ("testsuites", "testsuite"):
        assert int(element.attrib["tests"]) == len(list(element.iter("testcase")))
        assert int(element.attrib["failures"]) == len(list(element.iter("failure")))
    for child in element:
        check(child)


def parsed(found: Report) -> Element:
    data = render(found)
    assert data.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n")
    assert render(found) == data
    root = ElementTree.fromstring(data)
    check(root)
    return root


def test_a_case_for_every_gate() -> None:
    found = report(fault="layers.3.experts.gate_up (layer 3, expert 5)", notes=["one note"])
    root = parsed(found)
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert list(cases) == [gate.name for gate in found.gates]
    for gate in found.gates:
        failure = cases[gate.name].find("failure")
        assert (failure is None) == gate.passed
        if failure is not None:
            assert failure.get("message") == gate.message
            assert failure.text == f"{gate.message}\nThe fault begins at {found.fault}\none note"
    assert cases["logits.kl_mean"].get("classname") == "nano.int4.cpu.gates"
    (message,) = [f.get("message") for f in cases["logits.kl_mean"]]
    assert message == "logits.kl_mean is 0.25, and must be at most 0.05"
    (suite,) = root
    assert suite.get("timestamp") == "2026-01-02T03:04:05"
    properties = {entry.get("name"): entry.get("value") for entry in root.iter("property")}
    assert properties["verdict"] == "failed"
    assert properties["fingerprint"] == "ab" * 32


def test_the_baseline_is_a_suite_of_its_own(tmp_path: Path) -> None:
    measured().write(tmp_path / "earlier.json")
    judged = Baseline.read(tmp_path / "earlier.json").judge(
        measured(logits__kl_mean=0.02, logits__kl_p99=None)
    )
    (suite,) = [suite for suite in parsed(judged) if suite.get("name") == "baseline"]
    assert [failure.get("message") for failure in suite.iter("failure")] == [
        "logits.kl_mean is 0.02, was 0.01, and may be 0.011001 (1.1x+1e-6)",
        "logits.kl_p99 was not measured, was 0.1, and may be 0.12501 (1.25x+1e-5)",
    ]
    assert any(entry.get("name") == "baseline" for entry in suite.iter("property"))


@given(st.text())
def test_hostile_text_is_text(text: str) -> None:
    found = report(
        checkpoint=Source(name=text, fingerprint=text, architecture=text),
        gates=[GateResult(text, 1.0, None, 0.0, False, text)],
        recipe=text,
        time=text,
        notes=[text],
        fault=text,
    )
    (case,) = parsed(found).iter("testcase")
    legal = all(
        char in "\t\n\r" or "\x20" <= char <= "\ud7ff" or "\ue000" <= char <= "\ufffd" or char > "\uffff"
        for char in text
    )
    if legal:
        assert case.get("name") == text
    assert len(case.get("name") or "") == len(text)


def test_what_xml_cannot_hold() -> None:
    parsed(report(notes=["\x00\x01\x1b[31m\ufffe\uffff]]>&<x>\x85 "], recipe="\x08\"'<"))
