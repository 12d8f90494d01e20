"""manifest.json of a kit, as the program on the device reads it: without pydantic, and before anything was checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ernie_export.bundle.files import MANIFEST, REPORT
from ernie_export.kit.contents import PLAN, Contents
from ernie_export.progress import Silent
from ernie_export.spelling import seal_of

JSON = True
TOKENS = (b'"files":{', b'"size":1e999', b'"sha256":""', b'"kit.json":{}', b"manifest_sha256")
FILE = b"{}\n"


def seeds() -> Iterator[bytes]:
    entry = {"size": len(FILE), "sha256": hashlib.sha256(FILE).hexdigest()}
    yield json.dumps({"target": "arm64", "files": {PLAN: entry}}).encode()
    yield json.dumps({"files": {PLAN: entry, "weights/a.bin": entry | {"size": -1}}}).encode()


def parse(data: bytes, folder: Path) -> None:
    """A report is sealed over it, so that only the manifest itself can be wrong."""
    (folder / PLAN).write_bytes(FILE)
    (folder / MANIFEST).write_bytes(data)
    report = {"manifest_sha256": hashlib.sha256(data).hexdigest()}
    (folder / REPORT).write_text(json.dumps(report | {"seal": seal_of(report)}))
    contents = Contents(folder)
    contents.require_whole(Silent())
    assert set(contents.files) == {PLAN}
