from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.errors import UserError
from ernie_export.validate.sample import Sample, text_windows

patient = settings(deadline=None, max_examples=50)


def characters(text: str) -> list[int]:
    return [ord(character) for character in text]


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "text.txt").write_text(text, "utf-8")
    return tmp_path / "text.txt"


def test_windows_are_spread_over_the_whole_text(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(chr(65 + i) for i in range(20)))
    windows = text_windows(Sample(windows=3, window_tokens=4, text=path), characters)
    assert windows.ids.tolist() == [[65, 66, 67, 68], [73, 74, 75, 76], [81, 82, 83, 84]]
    assert windows.source == "text.txt"


def test_the_digest_is_of_the_ids(tmp_path: Path) -> None:
    path = written(tmp_path, "abcdefgh")
    one = text_windows(Sample(windows=2, window_tokens=4, text=path), characters)
    assert one.sha256 == text_windows(Sample(windows=2, window_tokens=4, text=path), characters).sha256
    one.ids[1, 3] += 1
    assert one.sha256 != text_windows(Sample(windows=2, window_tokens=4, text=path), characters).sha256


def test_a_text_of_just_one_window(tmp_path: Path) -> None:
    path = written(tmp_path, "abcd")
    ids = text_windows(Sample(windows=2, window_tokens=4, text=path), characters).ids
    np.testing.assert_array_equal(ids, [characters("abcd")] * 2)


def test_texts_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 tokens, 4 are needed"):
        text_windows(Sample(window_tokens=4, text=written(tmp_path, "abc")), characters)
    with pytest.raises(UserError, match="cannot be read"):
        text_windows(Sample(text=tmp_path / "none"), characters)
    (tmp_path / "text.txt").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 2\)"):
        text_windows(Sample(text=tmp_path / "text.txt"), characters)


@patient
@given(st.integers(2, 5000))
def test_a_sample_fits_any_context(context: int) -> None:
    sample = Sample().within(context)
    assert 2 <= sample.window_tokens <= context
    assert 2 <= sample.decode_tokens <= context
    assert sample.new_tokens >= 1
    assert 1 <= sample.prompt_tokens <= context - sample.new_tokens
    assert context < 512 or sample == Sample()


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="window_tokens = 1"):
        Sample(window_tokens=1)
