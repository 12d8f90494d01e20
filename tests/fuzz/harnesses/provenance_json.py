"""provenance.json: from what a bundle was made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ernie_export.bundle.provenance import Provenance
from tests.fuzz.harness import as_object, canonical
from tests.fuzz.harnesses import verify_folder

JSON = True
TOKENS = (b'"subject": [', b'"digest": {', b'"sha256": "', b'"predicateType": ', b'"resolvedDependencies": [')


@cache
def made() -> bytes:
    return verify_folder.bundle()[Provenance.FILE]


def seeds() -> Iterator[bytes]:
    yield made()


def parse(data: bytes, folder: Path) -> None:
    value = as_object(data)
    if value is not None:
        try:
            data = canonical(value)
        except (UnicodeEncodeError, ValueError):  # half of a surrogate pair, or a number that no file holds
            return
    (folder / Provenance.FILE).write_bytes(data)
    provenance = Provenance.read(folder)
    assert provenance is not None
    assert len(provenance.subjects()) <= len(provenance.subject)
    assert provenance.told()
