"""What a registry holds at an address: an OCI manifest, or whatever it says that it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.distribute.address import Address
from ernie_export.distribute.artifact import DOCUMENTS, documents_of, oci_manifest
from ernie_export.validate.document import LARGEST
from tests.fuzz.harnesses.manifest_json import MANIFEST

JSON = True
TOKENS = (b'"layers": [', b'"digest": "sha256:', b'"size": ', b'"annotations": {', b'"org.cncf.model.filepath": ',
          b'"manifest.json"', b'"schemaVersion": 2', b'"model.sig"', b'"../manifest.json"')  # fmt: skip
ADDRESS = Address.parse("oci://registry.example.com/ernie/nano:1")
ENTRY = FileEntry(size=5, sha256="ab" * 32)


def seeds() -> Iterator[bytes]:
    manifest = Manifest.model_validate(MANIFEST)
    for names in (UNLISTED, (*DOCUMENTS, "model.onnx"), ("model.onnx",)):
        yield oci_manifest(manifest, dict.fromkeys(names, ENTRY), b"{}", "sha256:" + "0" * 64)


def parse(data: bytes, folder: Path) -> None:
    found = documents_of(data, ADDRESS)
    assert set(DOCUMENTS) <= set(found) <= set(UNLISTED)
    for entry in found.values():
        assert 0 <= entry.size <= LARGEST and len(entry.sha256) == 64 and int(entry.sha256, 16) >= 0
