"""A text to validate on, cut into windows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ernie_export.checkpoint import embedded
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.validate.sample import Sample, text_windows

JSON = False
TOKENS = (
    b"\xef\xbb\xbf",
    b"<|im_start|>",
    b"</s>",
    b"\r\n",
    b"\xf0\x9f\x99\x82",
    b"\xcc\x81",
    b"\xed\xa0\x80",
)


@cache
def tokenizer() -> TextTokenizer:
    return TextTokenizer.read(embedded.folder())


def seeds() -> Iterator[bytes]:
    yield "The list is a mutable sequence. 漢字 é 🙂\n".encode() * 3
    yield b"import os\n\nclass A:\n    def f(self): return 1\n" * 2


def parse(data: bytes, folder: Path) -> None:
    path = folder / "text.txt"
    path.write_bytes(data)
    sample = Sample(windows=3, window_tokens=8, text=path)
    windows = text_windows(sample, tokenizer().encode)
    assert windows.ids.shape == (3, 8) and len(windows.sha256) == 64
    stream = tokenizer().stream()
    said = "".join(stream.push(int(id)) for id in windows.ids[0]) + stream.finish()
    assert said == tokenizer().decode(windows.ids[0].tolist())
