from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_export.errors import UserError
from ernie_export.validate.baseline import DEFAULTS, Baseline, Tolerance, better_high, require_comparable
from ernie_export.validate.report import HEADLINES, Inputs, Report, Source
from tests.validate.test_report import report

BEFORE = {
    "logits.kl_mean": 0.01,
    "logits.kl_p99": 0.1,
    "logits.same_top1": 0.95,
    "routing.agreement": 0.9,
    "perplexity.ratio": 1.001,
    "greedy.agreement": 0.5,
    "logits.non_finite": 0.0,
    "memory.peak_bytes": 1e9,
}


def measured(verdict: str = "passed", **changes: float | None) -> Report:
    """A report with these numbers; `logits__kl_mean=…` for a metric, None for one that was not measured."""
    found = {**BEFORE, **{name.replace("__", "."): value for name, value in changes.items()}}
    return report(gates=[], verdict=verdict, metrics={k: v for k, v in found.items() if v is not None})


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    path = tmp_path / "earlier.json"
    measured().write(path)
    return path


def test_the_same_numbers_pass_and_are_in_the_report(earlier: Path, tmp_path: Path) -> None:
    judged = Baseline.read(earlier).judge(measured())
    assert judged.verdict == "passed"
    assert judged.baseline is not None
    assert {row.name: row.allowed for row in judged.baseline.rows} == DEFAULTS
    assert judged.baseline.seal == Report.read(earlier).seal
    judged.write(tmp_path / "now.json")
    assert Report.read(tmp_path / "now.json") == judged.sealed()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("logits.kl_mean", 0.01100, 0.01101),
        ("logits.kl_p99", 0.125, 0.1251),
        ("logits.same_top1", 0.9451, 0.9449),
        ("routing.agreement", 0.8951, 0.8949),
        ("perplexity.ratio", 1.0029, 1.0031),
    ],
)
def test_each_default_has_its_bound(earlier: Path, name: str, good: float, bad: float) -> None:
    for value, passed in ((good, True), (bad, False), (math.nan, False)):
        judged = Baseline.read(earlier).judge(measured(**{name.replace(".", "__"): value}))
        assert judged.verdict == ("passed" if passed else "failed")
        assert judged.baseline is not None
        assert [row.name for row in judged.baseline.rows if not row.passed] == ([] if passed else [name])


def test_what_got_better_passes(earlier: Path) -> None:
    better = measured(logits__kl_mean=0, logits__kl_p99=0, logits__same_top1=1, perplexity__ratio=0.9)
    assert Baseline.read(earlier).judge(better).verdict == "passed"


def test_what_was_measured_then_must_be_measured_now(earlier: Path) -> None:
    judged = Baseline.read(earlier).judge(measured(logits__kl_p99=None))
    assert judged.verdict == "failed"
    assert judged.baseline is not None
    assert [(row.name, row.value) for row in judged.baseline.rows if not row.passed] == [
        ("logits.kl_p99", None)
    ]


def test_a_failed_gate_stays_failed(earlier: Path) -> None:
    assert Baseline.read(earlier).judge(measured("failed")).verdict == "failed"


def test_allowances_replace_add_and_remove(earlier: Path) -> None:
    worse = measured(logits__kl_mean=0.019, greedy__agreement=0.3, logits__same_top1=0.1)
    allowed = ["logits.kl_mean=2x", "greedy.agreement=0.1", "logits.same_top1=any"]
    judged = Baseline.read(earlier, allowed).judge(worse)
    assert judged.baseline is not None
    rows = {row.name: row for row in judged.baseline.rows}
    assert "logits.same_top1" not in rows
    assert rows["logits.kl_mean"].passed and rows["logits.kl_mean"].bound == 0.02
    assert not rows["greedy.agreement"].passed and rows["greedy.agreement"].bound == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("allowance", "says"),
    [
        ("logits.kl_mean", "not understood"),
        ("logits.kl_mean=", "not understood"),
        ("logits.kl_mean=-1", "not understood"),
        ("logits.kl_mean=1..1x", "not understood"),
        ("logits.kl_mean=nan", "not understood"),
        ("logits.kl_mean=1e999", "not understood"),
        ("logits.kl_mean=٣x", "not understood"),
        ("logits.kl_mean=0.9x", "at least 1"),
        ("logits.same_top1=1.1x", "at most 1"),
        ("logits.kl_main=1.1x", "Did you mean logits.kl_mean"),
        ("memory.peak_bytes=1x", "holds no measure of quality"),
        ("=1x", "holds no measure of quality"),
    ],
)
def test_allowances_that_are_none(earlier: Path, allowance: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Baseline.read(earlier, [allowance])
    assert "\n" not in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_a_tolerance_or_none(text: str) -> None:
    tolerance = Tolerance.parse(text)
    assert tolerance is None or (tolerance.factor >= 0 and tolerance.amount >= 0)


@given(st.floats(0, 10), st.floats(0, 1), st.floats(0, 1), st.sampled_from(sorted(HEADLINES)))
def test_a_bound_is_never_better_than_before(before: float, more: float, amount: float, name: str) -> None:
    factor = 1 - more if better_high(name) else 1 + more
    bound = Tolerance("", factor, amount).bound(name, before)
    assert bound <= before if better_high(name) else bound >= before


def test_another_checkpoint_and_other_tokens_are_refused(earlier: Path) -> None:
    with pytest.raises(UserError, match="another checkpoint"):
        Baseline.read(earlier, fingerprint="00" * 32)
    other = Source(name="b", fingerprint="00" * 32, architecture="Ernie4_5_MoeForCausalLM")
    with pytest.raises(UserError, match="another checkpoint"):
        Baseline.read(earlier).judge(report(checkpoint=other))
    elsewhere = Inputs(source="text", windows=1, tokens=2, sha256="00" * 32)
    with pytest.raises(UserError, match="other tokens"):
        Baseline.read(earlier).judge(report(inputs=elsewhere))
    require_comparable(earlier, Report.read(earlier), measured())


def test_a_baseline_that_is_no_number_is_refused(tmp_path: Path) -> None:
    measured(logits__kl_mean=math.nan).write(tmp_path / "nan.json")
    with pytest.raises(UserError, match="no measure of what follows"):
        Baseline.read(tmp_path / "nan.json")


def test_an_edited_baseline_is_refused(earlier: Path) -> None:
    earlier.write_bytes(earlier.read_bytes().replace(b"0.95", b"0.05"))
    with pytest.raises(UserError, match="seal is broken"):
        Baseline.read(earlier)


def test_a_dense_checkpoint_has_no_routing_to_lose(tmp_path: Path) -> None:
    measured(routing__agreement=None).write(tmp_path / "dense.json")
    judged = Baseline.read(tmp_path / "dense.json").judge(measured(routing__agreement=None))
    assert judged.verdict == "passed"
    assert judged.baseline is not None and len(judged.baseline.rows) == len(DEFAULTS) - 1
