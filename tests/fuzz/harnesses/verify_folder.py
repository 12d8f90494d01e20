"""A sealed bundle with edits: `verify` names every file that is not as it was, and no other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.bundle.write import seal
from ernie_export.errors import UserError
from ernie_export.validate.report import Claim, Report

JSON = False
TOKENS = (
    b"\x00\x00\x00\x01",
    b"\x01\x05\x00\x00",
    b"\x02\x00\x00\x07",
    b"\x03\x00\x00\x00",
    b"\x04\x02a\xff",
)
FILES = (
    "engine.json",
    "manifest.json",
    "model.onnx",
    "provenance.json",
    "report.json",
    "sbom.cdx.json",
    "weights/layer-00.bin",
    "weights/manifest.json",
)
SEALED = (Manifest.FILE, Report.FILE, "provenance.json", "sbom.cdx.json")  # these make themselves


@cache
def bundle() -> dict[str, bytes]:
    from tests.validate.test_html import whole

    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "weights").mkdir()
        for path in FILES:
            if path not in SEALED:
                (folder / path).write_bytes(path.encode() * 9)
        seal(folder, whole(layers=1, experts=2), [Claim(claim="graph", where="built here")])
        return {path: (folder / path).read_bytes() for path in FILES}


def seeds() -> Iterator[bytes]:
    yield b""
    yield b"".join(TOKENS)
    yield from (bytes([kind, file, 0, 1]) for kind in range(6) for file in range(len(FILES)))


def parse(data: bytes, folder: Path) -> None:
    """Four bytes are an edit: what, to which file, and two that say where or how."""
    root = folder / "bundle"
    shutil.rmtree(root, ignore_errors=True)
    (root / "weights").mkdir(parents=True)
    for path, content in bundle().items():
        (root / path).write_bytes(content)
    for at in range(0, min(len(data), 64) - 3, 4):
        _edit(root, *data[at : at + 4])
    changed = {path for path in FILES if _now(root / path) != bundle()[path]}
    there = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    extra = there - set(FILES)
    try:
        problems = {problem.path for problem in verify(root)}
    except UserError:
        assert Manifest.FILE in changed
        return
    # An edited manifest says nothing of the other files that could be believed.
    assert bool(problems) == bool(changed | extra), (problems, changed, extra)
    if Manifest.FILE not in changed:
        assert changed | _printable(extra) <= problems


def _now(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def _printable(names: set[str]) -> set[str]:
    return {name for name in names if name.isprintable()}


def _edit(root: Path, kind: int, file: int, first: int, second: int) -> None:
    path = root / FILES[file % len(FILES)]
    content = _now(path)
    at = (first << 8 | second) % (len(content) or 1) if content is not None else 0
    if kind % 6 == 0 and content:
        path.write_bytes(content[:at] + bytes([content[at] ^ (second or 1)]) + content[at + 1 :])
    elif kind % 6 == 1 and content is not None:
        path.write_bytes(content[:at])
    elif kind % 6 == 2 and content is not None:
        path.write_bytes(content[:at] + bytes([second]) + content[at:])
    elif kind % 6 == 3:
        path.unlink(missing_ok=True)
    elif kind % 6 == 4:
        name = bytes([first, second]).replace(b"/", b"-").replace(b"\0", b"0")
        if name not in (b".", b"..") and name.strip(b"."):
            (root / "weights" / name.decode("utf-8", "surrogateescape")).write_bytes(b"")
    elif kind % 6 == 5 and content is not None:
        path.unlink()
        path.symlink_to("engine.json" if first % 2 else "/etc/passwd")
