"""manifest.json: the bytes as they are, and what they say in the manifest's own spelling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ernie_export.bundle.manifest import Manifest
from tests.fuzz.harness import as_object, canonical

JSON = True
TOKENS = (b'"files": {', b'"sha256": "', b'"size": ', b'"verdict": "passed"', b'"claims": [', b'"ran here"')
ENTRY = {"size": 5, "sha256": "ab" * 32}
MANIFEST = {
    "schema_version": 1,
    "checkpoint": {"name": "nano", "fingerprint": "ab" * 32, "architecture": "Ernie4_5_MoeForCausalLM"},
    "recipe": "int4",
    "target": "cpu",
    "files": {"model.onnx": ENTRY, "weights/layer-00.bin": ENTRY},
    "software": {"python": "3.11"},
    "verdict": "passed",
    "claims": [{"claim": "graph and weights", "where": "built here"}],
}


def seeds() -> Iterator[bytes]:
    yield canonical(MANIFEST)
    yield json.dumps(MANIFEST | {"files": {}}).encode()


def parse(data: bytes, folder: Path) -> None:
    (folder / Manifest.FILE).write_bytes(data)
    value = as_object(data)
    if value is not None:
        try:
            data = canonical(value)
        except UnicodeEncodeError:  # half of a surrogate pair, which no file holds
            return
        (folder / Manifest.FILE).write_bytes(data)
    manifest = Manifest.read(folder)
    written = json.loads(data)
    assert {key: manifest.model_dump(mode="json")[key] for key in written} == written
    for path in manifest.files:
        assert (folder / path).resolve().is_relative_to(folder.resolve())
        assert path == PurePosixPath(path).as_posix()
