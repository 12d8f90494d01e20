from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ernie_export.calibrate.text import DEFAULT, calibration_windows
from ernie_export.errors import UserError
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.recipe import Calibration, Recipe
from ernie_export.validate.sample import HELD_OUT

SETTINGS = Calibration(method="gptq", tokens=64, window=16)


def characters(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_the_text_that_comes_along_is_enough_and_is_not_what_is_measured(nano: Path) -> None:
    settings = Recipe.find("int4-gptq").calibration
    assert settings
    windows = calibration_windows(None, settings, TextTokenizer.read(nano).encode)
    assert windows.ids.size == settings.tokens and windows.source == "calibration.txt"
    text, held_out = DEFAULT.read_text("utf-8"), HELD_OUT.read_text("utf-8")
    assert len(text) > 8 * settings.tokens  # a larger vocabulary needs fewer tokens
    pieces = [held_out[at : at + 300] for at in range(0, len(held_out) - 300, 300)]
    assert len(pieces) > 1000 and not [piece for piece in pieces if piece in text]


def test_windows_are_those_of_the_users_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("".join(chr(300 + i) for i in range(100)), "utf-8")
    windows = calibration_windows(path, SETTINGS, characters)
    assert windows.ids.shape == (4, 16) and windows.source == "mine.txt"
    np.testing.assert_array_equal(windows.ids[:, 0], [300, 328, 356, 384])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "mine.txt is empty. Name a text file."),
        (b" \n\n", "mine.txt is empty. Name a text file."),
        (b"a" * 70 + b"\xff", r"mine.txt is not UTF-8 \(byte 70\). Save it as UTF-8."),
        (b"a" * 63, "mine.txt has 63 tokens, 64 are needed. Name a longer text."),
    ],
)
def test_texts_that_do_not_do(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(data)
    with pytest.raises(UserError, match=message):
        calibration_windows(tmp_path / "mine.txt", SETTINGS, characters)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt cannot be read \(No such file or directory\)"):
        calibration_windows(tmp_path / "none.txt", SETTINGS, characters)
    with pytest.raises(UserError, match="cannot be read"):
        calibration_windows(tmp_path, SETTINGS, characters)
