"""A real bundle measured for real; no time is expected, only what must hold of any."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ernie_export.bench import opening, page
from ernie_export.bench.bench import Bench, bench, lengths
from ernie_export.engine.info import EngineInfo
from ernie_export.errors import UserError, WorkError
from ernie_export.plan import machine
from ernie_export.progress import Silent


@pytest.fixture(scope="module")
def measured(bundle: Callable[[str], Path]) -> Bench:
    return bench(bundle("int4"), Silent(), [16, 32], [8, 24], tokens=4, repeats=2, threads=1)


def test_every_length_is_measured(measured: Bench) -> None:
    assert [row.tokens for row in measured.prefill] == [16, 32]
    assert [row.context for row in measured.decode] == [8, 24]
    assert measured.cache == 32 and measured.threads == 1 and measured.recipe == "int4"
    for row in measured.prefill:
        assert row.tokens_per_second == pytest.approx(row.tokens / row.seconds)
    for step in measured.decode:
        assert 0 < step.fastest <= step.seconds
        assert step.bytes_per_second == pytest.approx(step.bytes / step.seconds)
        if measured.bandwidth:
            assert step.share == pytest.approx(step.bytes_per_second / measured.bandwidth)


def test_a_token_reads_the_weights_it_uses_and_the_cache(
    measured: Bench, bundle: Callable[[str], Path]
) -> None:
    info = EngineInfo.read(bundle("int4"))
    each = 2 if machine.native_operators() else 4
    cached = 2 * info.num_layers * info.num_key_value_heads * info.head_dim * each
    short, long = measured.decode
    assert long.bytes - short.bytes == (24 - 8) * cached
    stored = sum(path.stat().st_size for path in (bundle("int4") / "weights").iterdir())
    assert 0.1 * stored < short.bytes - 8 * cached < 0.9 * stored  # of 16 experts it uses 4


def test_opening_is_measured_cold_and_warm(measured: Bench, bundle: Callable[[str], Path]) -> None:
    found = measured.opening
    assert found.bytes == sum(path.stat().st_size for path in bundle("int4").rglob("*") if path.is_file())
    assert found.cold and found.reading and min(found.cold.seconds, found.reading, found.warm.seconds) > 0
    assert found.warm.highest_anonymous >= found.warm.after.anonymous > 0


def test_dropped_files_are_read_from_the_disk_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(opening.CHUNK + 5))
    opening.drop([path])
    assert path.stat().st_size == opening.CHUNK + 5
    assert opening.read([path]) > 0


def test_the_usual_lengths_are_those_that_fit() -> None:
    assert lengths(None, (128, 512, 2048), 512) == [128, 512]
    assert lengths([], (128,), 64) == [64]
    assert lengths([9, 3, 9], (128,), 64) == [3, 9]
    with pytest.raises(UserError, match=r"65 tokens .* room for 64"):
        lengths([65], (128,), 64)


def test_what_does_not_open_is_told(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_bytes((bundle("int4") / "engine.json").read_bytes())
    with pytest.raises(WorkError, match="does not open in a process of its own"):
        opening.open_elsewhere(tmp_path, 1)


def test_the_page_shows_every_number_and_fetches_nothing(measured: Bench) -> None:
    text = page.render(measured.model_copy(update={"bundle": "<script>alert(1)</script>"})).decode()
    assert "<script" not in text and not re.search(r'(?:src|href)="(?!data:)', text)
    for row in measured.decode:
        assert f"{row.tokens_per_second:,.1f}" in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert ElementTree.fromstring(svg).findall("polyline")
    assert page.decode_plot(measured).lines[0].name == page.MEASURED


def test_the_plot_shows_what_the_bandwidth_allows(measured: Bench) -> None:
    known = measured.model_copy(update={"bandwidth": 1e9})
    _, allowed = page.decode_plot(known).lines
    assert allowed.dots[0].title == f"8: {1e9 / known.decode[0].bytes:,.1f} tokens/s"
    unknown = page.decode_plot(measured.model_copy(update={"bandwidth": None}))
    assert len(unknown.lines) == 1
