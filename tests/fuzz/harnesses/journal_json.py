"""journal.json of a build that was killed: what it does not say rightly is made anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ernie_export.pipeline import Work
from ernie_export.progress import Silent

JSON = True
TOKENS = (b'"key":', b'"sha256":', b'"size":', b"recipe.toml")
CONTENT = b"a recipe"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def seeds() -> Iterator[bytes]:
    yield json.dumps({"recipe.toml": {"key": SHA256, "sha256": SHA256, "size": len(CONTENT)}}).encode()
    yield b"{}"


def parse(data: bytes, folder: Path) -> None:
    (folder / "journal.json").write_bytes(data)
    work = Work(folder, Silent())
    work.make_bytes("recipe.toml", CONTENT)
    work.leave_only_what_was_made()
    assert (work.folder / "recipe.toml").read_bytes() == CONTENT
    assert isinstance(work.digests["recipe.toml"], str)
