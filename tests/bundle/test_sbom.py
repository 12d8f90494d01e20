"""The bill of materials, against the schema that CycloneDX publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from ernie_export.bundle import sbom
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.provenance import Provenance
from ernie_export.bundle.write import seal
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle


def mistakes(text: str) -> object:
    """What CycloneDX's own schema of version 1.6 says."""
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / sbom.FILE).read_bytes())
    return found


@pytest.mark.parametrize("recipe", ["int4", "fp32"])
def test_it_is_cyclonedx(bundle: BuiltBundle, recipe: str) -> None:
    text = (bundle(recipe) / sbom.FILE).read_text()
    assert mistakes(text) is None
    assert mistakes(text.replace('"library"', '"libary"', 1)) is not None
    held = Bom.from_json(json.loads(text))  # type: ignore[attr-defined]
    manifest = Manifest.read(bundle(recipe))
    hashed = {each.name: next(iter(each.hashes)).content for each in held.components if each.hashes}
    made_later = (sbom.FILE, Provenance.FILE)
    assert hashed == {name: file.sha256 for name, file in manifest.files.items() if name not in made_later}
    packages = {each.name: each.version for each in held.components if each.purl}
    assert packages == manifest.software
    (model,) = (each for each in held.components if each.type.value == "machine-learning-model")
    assert (model.name, model.version) == (manifest.checkpoint.name, manifest.checkpoint.fingerprint)


def test_purls_are_those_of_the_specification(bundle: BuiltBundle) -> None:
    for part in read(bundle("int4"))["components"]:
        if "purl" in part:
            purl = PackageURL.from_string(part["purl"])
            assert (purl.name, purl.version) == (part["name"], part["version"])
            assert purl.to_string() == part["purl"]
    assert (
        sbom.package_url("onnx_ir", "2.13.0+cpu")
        == PackageURL("pypi", name="onnx_ir", version="2.13.0+cpu").to_string()
    )


def test_the_same_bundle_has_the_same_one(unsealed: Path, report: Report) -> None:
    seal(unsealed, report, [])
    before = {name: (unsealed / name).read_bytes() for name in (sbom.FILE, Provenance.FILE, Manifest.FILE)}
    seal(unsealed, report, [])  # over what the first left
    assert before == {name: (unsealed / name).read_bytes() for name in before}
    serial = read(unsealed)["serialNumber"]
    (unsealed / "empty").write_bytes(b"no more")
    seal(unsealed, report, [])
    assert read(unsealed)["serialNumber"] != serial


def test_a_plugin_is_a_library_with_its_digest(unsealed: Path, report: Report) -> None:
    (unsealed / "libernie_plugins.so").write_bytes(b"\x7fELF")
    manifest = seal(unsealed, report, [])
    parts = {part["name"]: part for part in read(unsealed)["components"]}
    plugin = parts["libernie_plugins.so"]
    assert (
        plugin["type"] == "library"
        and {"name": "ernie-export:kind", "value": "plugin"} in plugin["properties"]
    )
    assert plugin["hashes"] == [{"alg": "SHA-256", "content": manifest.files["libernie_plugins.so"].sha256}]
    assert mistakes((unsealed / sbom.FILE).read_text()) is None
