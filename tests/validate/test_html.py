"""The page as text, and in a browser: in light and dark, on a phone and on a desk."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.recipe import Gate
from ernie_export.validate import figures
from ernie_export.validate.baseline import Baseline
from ernie_export.validate.gates import evaluate
from ernie_export.validate.html import render
from ernie_export.validate.metrics import KL_EDGES
from ernie_export.validate.report import (
    Claim,
    Continuation,
    DriftReport,
    Histogram,
    Inputs,
    LayerReport,
    OperatorReport,
    Report,
    Sizes,
    Source,
)
from tests.validate.chromium import PATH, Chromium
from tests.validate.test_report import report

HOSTILE = (
    "<script>fetch('//evil.example')</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>@import '//evil.example'</style>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "\u202egnorw\x00\x1b[31m\x85\u2028",
    "&lt;b&gt;",
    "x" * 300,
)
METRICS = {
    "logits.kl_mean": 0.0059,
    "logits.kl_p99": 0.034,
    "logits.same_top1": 0.963,
    "logits.non_finite": 0.0,
    "routing.agreement": 0.938,
    "perplexity.ratio": 1.006,
    "operators.experts_error": 0.1,
    "memory.peak_bytes": 8e8,
}
GATES = {
    "logits.kl_mean": Gate(max=0.02),
    "logits.same_top1": Gate(min=0.94),
    "perplexity.ratio": Gate(min=0.99, max=1.02),
    "operators.experts_error": Gate(max=0.18),
}
OPERATORS = ("attention.q.output", "attention.core.output", "routing.scores", "experts.output", "output")


def whole(layers: int = 5, experts: int = 16, **changes: Any) -> Report:
    """A report in which everything was measured."""
    rng = np.random.default_rng(layers)

    def shares() -> list[float]:
        return (rng.dirichlet(np.full(experts, 20.0)) * 4).tolist()

    fields: dict[str, Any] = {
        "verdict": "passed",
        "metrics": METRICS,
        "gates": evaluate(METRICS, GATES),
        "layers": [
            LayerReport(
                layer=layer, agreement=0.94, experts=0.98, largest_changed_gap=0.1, score_difference=math.inf,
                expert_agreement=[None, *rng.uniform(0.8, 1, experts - 1).tolist()],
                expert_load=shares(), expert_load_reference=shares(),
            )
            for layer in range(1, layers + 1)
        ],
        "drift": [
            DriftReport(layer=layer, added_error=0.01, added_cosine=0.9999, error=0.01 * (layer + 1), cosine=0.99)
            for layer in range(layers + 1)
        ],
        "operators": [
            OperatorReport(name="embedding.output", kind="embedding", relative_error=0.006, cosine=1, expert=None),
            *(
                OperatorReport(
                    name=f"layers.{layer}.{name}", kind="experts" if "experts" in name else "exact",
                    relative_error=0.1 if "experts" in name else 1e-7, cosine=1,
                    expert=3 if "experts" in name else None,
                )
                for layer in range(1, layers + 1)
                for name in OPERATORS
            ),
        ],
        "kl_histogram": Histogram(
            edges=KL_EDGES.tolist(), counts=[4, *rng.integers(0, 90, len(KL_EDGES) - 1).tolist(), 0]
        ),
        "continuations": [
            Continuation(prompt="The list", reference=" is empty\nnow", export=" is full\nof", agreement=0.25)
        ],
        "sizes": Sizes(files={"model.onnx": 50_000}, parts={"experts": 4_000_000, "input_norm": 2}),
        "claims": [Claim(claim="decode", where="ran here"), Claim(claim="speed", where="planned")],
        "notes": ["a note"],
    }  # fmt: skip
    return report(**{**fields, **changes})


class Words(HTMLParser):
    """Text, tags and attributes, as a browser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " " if tag in ("td", "th", "dd") else ""
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def words(page: bytes) -> Words:
    parser = Words()
    parser.feed(page.decode())
    return parser


def says(page: bytes) -> str:
    return " ".join(words(page).text.split())


def test_the_verdict_comes_first_with_its_reason() -> None:
    passed, failed = (
        says(render(whole())),
        says(render(report(fault="layers.3.experts.gate_up (expert 5 of layer 3)"))),
    )
    assert re.search(r"Passed All 5 gates passed, on 2 tokens", passed)
    place, reason = (
        r"layers\.3\.experts\.gate_up \(expert 5 of layer 3\)",
        r"mean: 0\.25, but must be ≤ 0\.05",
    )
    assert re.search(rf"Failed The fault begins at {place}\. ?KL divergence, {reason}\.", failed)


def test_everything_that_was_measured_is_on_the_page() -> None:
    page = render(
        whole(),
        [("big", whole(metrics={**METRICS, "logits.kl_mean": 1e-4}))],
        [Claim(claim="graph", where="built here")],
    )
    found = words(page)
    text = " ".join(found.text.split())
    for heading in ("Gates", "Drift, layer by layer", "Token by token", "Experts", "Beside other builds",
                    "In their own words", "Size and time", "Where it was seen", "Software", "Machine"):  # fmt: skip
        assert heading in text
    assert "big" in text and "this build" in text
    assert "graph built here" in text and "decode ran here" in text and "speed planned" in text
    titles = {value for name, value in found.attributes if name == "title"}
    assert "Layer 1, expert 0: never chosen" in titles
    assert sum(title.startswith("Layer 3, expert") and "the same for" in title for title in titles) == 15
    assert any(
        re.match(r"Layer 2, experts: relative error 0.1, expert 3 the worst; allowed 0.18", title)
        for title in titles
    )
    assert "is full" in text and "is empty" in text


def test_a_bare_report_is_a_page_too() -> None:
    bare = report(
        metrics={},
        gates=[],
        layers=[],
        sizes=Sizes(files={}, parts={}),
        timings={},
        claims=[],
        verdict="passed",
    )
    assert "Passed" in says(render(bare))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_shown_as_bad(bad: float) -> None:
    broken = whole(
        metrics={**METRICS, "logits.kl_mean": bad},
        gates=evaluate({**METRICS, "logits.kl_mean": bad}, GATES),
        verdict="failed",
        drift=[
            DriftReport(layer=layer, added_error=bad, added_cosine=bad, error=bad, cosine=bad)
            for layer in (0, 1)
        ],
        kl_histogram=Histogram(edges=KL_EDGES.tolist(), counts=[0] * len(KL_EDGES) + [9]),
    )
    text = says(render(broken, [("other", whole())]))
    assert f"KL divergence, mean: {bad:.4g}, but must be ≤ 0.02" in text


def test_operators_over_their_gate_are_flagged() -> None:
    tight = whole(gates=evaluate(METRICS, {"operators.experts_error": Gate(max=0.05)}), verdict="failed")
    page = render(tight).decode()
    assert page.count(' flag"') == 5
    assert "5 operators are further off than their gates allow" in page


def test_the_drift_names_the_layer_of_the_fault() -> None:
    assert "The error is largest behind layer" in says(render(whole()))
    faulty = whole(fault="layers.2.attention.core.output", verdict="failed")
    added = next(layer.added_error for layer in faulty.drift if layer.layer == 2)
    assert f"The fault is in layer 2, which adds an error of {added:.2%}" in says(render(faulty))
    assert "The error is largest behind layer" in says(render(whole(fault="norm.output", verdict="failed")))


def test_the_rows_of_operators_follow_the_layer_and_end_with_its_sum() -> None:
    names = ("input_norm", "attention.q", "after_attention", "mlp.down", "", "experts", "attention.cache")
    operators = [
        OperatorReport(name=f"layers.1{name and '.' + name}.output", kind="exact", relative_error=0, cosine=1,
                       expert=None)
        for name in names
    ]  # fmt: skip
    heat = figures.operators(whole(operators=operators))
    assert heat is not None
    assert [name for name, _ in heat.rows] == [
        "input_norm", "attention.q", "attention.cache", "after_attention", "mlp.down", "experts",
        "the layer's sum",
    ]  # fmt: skip


def test_the_baseline_is_a_section(tmp_path: Path) -> None:
    whole().write(tmp_path / "before.json")
    now = whole(metrics={**METRICS, "logits.kl_mean": 0.009})
    text = says(render(Baseline.read(tmp_path / "before.json").judge(now)))
    assert "1 of 5 have fallen too far" in text
    assert "KL divergence, mean: was 0.0059 and is 0.009: more than 1.1x+1e-6 worse" in text


def hostile(text: str) -> Report:
    return whole(
        checkpoint=Source(name=text, fingerprint=text, architecture=text), recipe=text, target=text, tool=text,
        time=text, notes=[text], fault=text, software={text: text}, machine={text: text}, timings={text: 1.0},
        sizes=Sizes(files={text: 1}, parts={text: 1}), claims=[Claim(claim=text, where="ran here")],
        inputs=Inputs(source=text, windows=1, tokens=1, sha256=text), metrics={**METRICS, text: 0.5},
        gates=evaluate({text: 0.5}, {text: Gate(max=0.1)}),
        continuations=[Continuation(prompt=text, reference="a" + text, export=text, agreement=0)],
        operators=[OperatorReport(name=f"layers.1.{text}", kind=text, relative_error=1, cosine=1, expert=None),
                   OperatorReport(name=text, kind=text, relative_error=1, cosine=1, expert=None)],
    )  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_stay_words(text: str) -> None:
    tame, found = words(render(hostile("tame"))), words(render(hostile(text), [(text, hostile(text))]))
    assert set(found.tags) <= {*tame.tags, "span", "svg", "line", "figure", "b"}
    assert "script" not in found.tags and "img" not in found.tags
    assert {name for name, _ in found.attributes} <= {
        name for name, _ in words(render(whole(), [("a", whole())])).attributes
    }
    assert not any(
        value.startswith(("http:", "https:", "//", "javascript:"))
        for name, value in found.attributes
        if name in ("href", "src")
    )


@settings(max_examples=15, deadline=None)
@given(st.text())
def test_any_words_give_a_page_of_the_same_tags(text: str) -> None:
    assert words(render(hostile(text))).tags.count("section") == words(render(hostile("tame"))).tags.count(
        "section"
    )
    render(hostile(text)).decode("utf-8")


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = render(whole(), [("other", whole())]).decode()
    assert not re.search(r"<script|https?://|url\(|@import|@font-face| on\w+=", page)
    assert "default-src 'none'" in page


# --- In a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if PATH is None:
        pytest.skip("Chromium is not installed: make system-deps")
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


CONTRAST = """
(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = parse(c).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/rgba\\(.*, 0\\)|transparent/.test(c)) return c; } return 'rgb(255,255,255)'; };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walker.nextNode(); n; n = walker.nextNode()) {
    const e = n.parentElement;
    if (!n.textContent.trim() || !e.getClientRects().length) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) low.push(n.textContent.trim().slice(0, 40));
  }
  return low;
})()
"""
PAGES = ("passed", "failed", "large", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    other = whole(
        metrics={**METRICS, "logits.kl_mean": 1e-5}, sizes=Sizes(files={}, parts={"experts": 20_000_000})
    )
    whole().write(folder / "before.json")
    fallen = Baseline.read(folder / "before.json").judge(whole(metrics={**METRICS, "logits.kl_mean": 0.009}))
    made = {
        "passed": render(whole(), [("int8", other)]),
        "failed": render(fallen),
        "large": render(whole(layers=53, experts=64)),
        "hostile": render(hostile(" ".join(HOSTILE)), [(HOSTILE[-1], other)]),
    }
    for name, page in made.items():
        (folder / f"{name}.html").write_bytes(page)
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_in_a_browser(browser: Chromium, pages: Path, name: str) -> None:
    page = pages / f"{name}.html"
    papers = set()
    for scheme in ("light", "dark"):
        for width in (320, 1280):
            browser.open(page, width, scheme)
            browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.value("document.documentElement.scrollWidth") == width
            assert browser.value("innerWidth") == width
            assert browser.value(CONTRAST) == []
            papers.add(browser.value("getComputedStyle(document.body).backgroundColor"))
            told = {event["method"] for event in browser.events}
            assert not told & {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
            asked = [
                e["params"]["request"]["url"]
                for e in browser.events
                if e["method"] == "Network.requestWillBeSent"
            ]
            assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert len(papers) == 2  # dark is not light


def test_the_browser_would_tell(browser: Chromium, tmp_path: Path) -> None:
    """The test above can fail: a page that fetches, complains and is too wide is found out."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<body style='color:#777;background:#888'><p style='width:900px'>pale</p>"
        "<img src='missing.png'><script>console.log(1); nothing.here</script>"
    )
    browser.open(page, 320, "light")
    told = {event["method"] for event in browser.events}
    assert {"Runtime.exceptionThrown", "Runtime.consoleAPICalled"} <= told
    assert browser.value("document.documentElement.scrollWidth") > 320
    assert browser.value(CONTRAST) == ["pale"]
    urls = [
        e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.endswith("missing.png") for url in urls)
