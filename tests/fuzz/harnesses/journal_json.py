"""journal.json of a build that was killed: what it does not say rightly is made anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ernie_export.partial import Work, digest_of
from ernie_export.progress import Silent
from ernie_export.validate.environment import software

JSON = True
TOKENS = (b'"made_from":', b'"sources":', b'"sha256":', b'"size":', b"recipe.toml")
CONTENT = b"a recipe"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def seeds() -> Iterator[bytes]:
    yield journal(content=SHA256)
    yield journal(content=SHA256, software=digest_of(software()))
    yield b"{}"


def journal(**made_from: str) -> bytes:
    entry = {"made_from": made_from, "sha256": SHA256, "size": len(CONTENT), "sources": {}}
    return json.dumps({"recipe.toml": entry}).encode()


def parse(data: bytes, folder: Path) -> None:
    (folder / "journal.json").write_bytes(data)
    work = Work(folder, Silent())
    work.make_bytes("recipe.toml", CONTENT)
    work.leave_only_what_was_made()
    assert (work.folder / "recipe.toml").read_bytes() == CONTENT
    assert isinstance(work.digests["recipe.toml"], str)
