"""The text that ernie-nano learns: Python's own documentation, split by file.

The sources are the `_sources/**/*.rst.txt` files of Debian's `python3.11-doc` package
(Python documentation, PSF License Version 2).  Whole files are held out, so that no
paragraph of the held-out text was ever seen in training.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_ONE_IN = 20
CALIBRATION_ONE_IN, CALIBRATION_REST = 40, 2
"""Of the files that are learnt from, those that calibration reads as well."""
#: Files that are lists of contributors or of changes: little language, many names.
LEFT_OUT = ("whatsnew/changelog", "license", "copyright")

ENTRY = re.compile(
    r"^\.\. (?:function|method|class|exception|data|attribute|opcode|decorator)::[ ]*(?:class )?"
    r"(?P<name>[^\n]+)\n(?P<body>(?:[ ]+[^\n]*\n|\n)+)",
    re.MULTILINE,
)
TERM = re.compile(r"^ {4}(?P<name>[^\s.:`][^\n]*)\n(?P<body>(?: {6,}[^\n]*\n)+)", re.MULTILINE)


@dataclass(frozen=True)
class Corpus:
    train: list[str]
    held_out: list[str]
    calibration: list[str]
    """A part of `train`."""
    dialogues: list[tuple[str, str]]
    sha256: str


def is_held_out(name: str) -> bool:
    return number_of(name) % HELD_OUT_ONE_IN == 0


def is_calibration(name: str) -> bool:
    return number_of(name) % CALIBRATION_ONE_IN == CALIBRATION_REST


def number_of(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def load(folder: Path) -> Corpus:
    """Read every source below `folder`, in the order of their names."""
    train, held_out, calibration, dialogues = [], [], [], []
    digest = hashlib.sha256()
    paths = sorted(folder.rglob("*.rst.txt"))
    if not paths:
        raise SystemExit(f"no *.rst.txt below {folder}: unpack python3.11-doc there (see README.md)")
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if name.startswith(LEFT_OUT):
            continue
        text = path.read_text(encoding="utf-8")
        digest.update(name.encode() + b"\0" + text.encode())
        if is_held_out(name):
            held_out.append(text)
        else:
            train.append(text)
            dialogues += questions(name, text)
            calibration += [text] * is_calibration(name)
    return Corpus(train, held_out, calibration, dialogues, digest.hexdigest())


def questions(name: str, text: str) -> list[tuple[str, str]]:
    """Question and answer pairs that the documentation itself holds: entries and glossary terms."""
    found = []
    pattern = TERM if name.startswith("glossary") else ENTRY
    for entry in pattern.finditer(text):
        answer = first_paragraph(entry["body"])
        if 20 <= len(answer) <= 400:
            title = entry["name"].strip().rstrip("\\")
            word = re.split(r"[\s(]", title)[0] if pattern is ENTRY else title
            found.append((f"What is {word}?", answer))
    return found


def first_paragraph(body: str) -> str:
    lines: list[str] = []
    for line in body.splitlines():
        line = line.strip()
        if not line and lines:
            break
        if line.startswith(("..", ":", "*", "+", "|", ">>>")):
            if lines:
                break
            continue
        if line:
            lines.append(line)
    plain = " ".join(lines)
    plain = re.sub(r":[\w:]+:`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", plain)
    return plain.replace("``", "`").rstrip(":")
