"""sbom.cdx.json: what a bundle is made of and by, in CycloneDX 1.6. The same bundle gives the same bytes.

It has no time: that is in the report.  Its serial number follows from what it lists.
https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ernie_export.spelling import spelled

if TYPE_CHECKING:
    from ernie_export.bundle.files import Entry
    from ernie_export.validate.report import Source

FILE = "sbom.cdx.json"
LIBRARIES = (".so", ".dll", ".dylib")
ENGINES = (".onnx", ".engine", ".plan")


def sbom(
    checkpoint: Source, recipe: str, target: str, files: Mapping[str, Entry], software: Mapping[str, str]
) -> bytes:
    """`files` are all but this one and those that are made after it; `software` what made and measured them."""
    listed = [_file(path, entry) for path, entry in sorted(files.items())]
    packages = [_package(name, version) for name, version in sorted(software.items())]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "checkpoint",
        "name": checkpoint.name,
        "version": checkpoint.fingerprint,
        "properties": _properties(architecture=checkpoint.architecture, fingerprint=checkpoint.fingerprint),
    }
    bundle = {
        "type": "machine-learning-model",
        "bom-ref": "bundle",
        "name": f"{checkpoint.name}, {recipe}, for {target}",
        "properties": _properties(recipe=recipe, target=target),
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": bundle, "lifecycles": [{"phase": "build"}]},
        "components": [model, *listed, *packages],
        "dependencies": [
            {"ref": "bundle", "dependsOn": ["checkpoint", *(each["bom-ref"] for each in listed)]},
            *({"ref": each["bom-ref"]} for each in (model, *listed, *packages)),
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(document, sort_keys=True))
    return spelled({**document, "serialNumber": f"urn:uuid:{serial}"})


def _file(path: str, entry: Entry) -> dict[str, Any]:
    kind = "library" if path.endswith(LIBRARIES) else "file"
    what = "engine" if path.endswith(ENGINES) else "weights" if path.startswith("weights/") else "document"
    return {
        "type": kind,
        "bom-ref": f"file:{path}",
        "name": path,
        "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
        "properties": _properties(size=str(entry.size), kind="plugin" if kind == "library" else what),
    }


def _package(name: str, version: str) -> dict[str, Any]:
    """A package of Python, or Python itself."""
    purl = f"pkg:generic/python@{version}" if name == "python" else package_url(name, version)
    kind = "platform" if name == "python" else "library"
    return {
        "type": kind,
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "scope": "excluded",  # it made or measured the bundle, and is not in it
    }


def package_url(name: str, version: str) -> str:
    """https://github.com/package-url/purl-spec"""
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}"


def _properties(**values: str) -> list[dict[str, str]]:
    return [{"name": f"ernie-export:{name}", "value": value} for name, value in sorted(values.items())]
