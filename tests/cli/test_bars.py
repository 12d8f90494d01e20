from __future__ import annotations

import io
import threading
import time

import pytest
from rich.console import Console

from ernie_export.cli import bars as module
from ernie_export.cli.bars import amount, bars, rate, time_left


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def shown(console: Console) -> str:
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def wait_for(text: str, console: Console) -> None:
    until = time.monotonic() + 10
    while text not in shown(console):
        assert time.monotonic() < until, shown(console)
        time.sleep(0.01)


def test_short_work_shows_nothing(console: Console) -> None:
    with bars(console) as progress, progress.step("Quick", 2) as step:
        step.advance()
    assert shown(console) == ""


def test_long_work_shows_its_title_how_far_it_is_and_the_time_left(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    with bars(console) as progress, progress.step("Quantize", 4, "layers") as step:
        for _ in range(3):
            time.sleep(0.05)
            step.advance()
        wait_for("Quantize", console)
        wait_for("3 / 4 layers", console)
        wait_for(" left", console)


def test_patience_counts_from_the_first_of_several_short_steps(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with bars(console) as progress:
        for at in range(8):
            with progress.step(f"Step {at}"):
                time.sleep(0.06)
        with progress.step("The last"):
            wait_for("The last", console)
    assert "Step 0" not in shown(console)


def test_steps_may_lie_within_steps_and_be_moved_by_threads(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    with bars(console) as progress, progress.step("Outer", 200) as outer, progress.step("Inner"):
        threads = [threading.Thread(target=lambda: [outer.advance() for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for("200 / 200", console)
        wait_for("Inner", console)


def test_the_bars_are_gone_when_an_error_is_told(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with pytest.raises(ValueError), bars(console) as progress, progress.step("Doomed"):
        wait_for("Doomed", console)
        raise ValueError
    assert "\x1b[2K" in shown(console).rpartition("Doomed")[2]  # the line is erased


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (12, 28, "layers", "12 / 28 layers"),
        (1.2e9, 43.6e9, "B", "1.2 GB / 43.6 GB"),
        (3, None, "tokens", "3 tokens"),
        (0, None, "", ""),
        (1500, 3000, "", "1,500 / 3,000"),
    ],
)
def test_amount(done: float, total: float | None, unit: str, text: str) -> None:
    assert amount(done, total, unit) == text


def test_rate_is_told_of_bytes() -> None:
    assert rate(0.62e9, "B") == "620 MB/s"
    assert rate(3, "layers") == rate(None, "B") == ""


def test_time_left() -> None:
    assert time_left(75, 10) == "1:15 left"
    assert time_left(None, 75) == "1:15"
    assert time_left(None, None) == "0:00"
