"""A bundle as an OCI artifact, in the words of the CNCF's ModelPack (model-spec v0.0.7).

A layer per file, uncompressed, its digest the SHA-256 that the bundle's own manifest lists: two bundles
share in a registry every file that is the same.  The bundle's manifest and report are layers too, and
all that a reader needs of the OCI manifest: the rest follows from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ernie_export.bundle.files import SIGNATURE, UNLISTED
from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.digest import sha256_of
from ernie_export.distribute.address import Address
from ernie_export.distribute.registry import MANIFEST
from ernie_export.errors import UserError
from ernie_export.recipe import Recipe
from ernie_export.validate.document import LARGEST
from ernie_export.validate.report import Report

ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"
FILEPATH = "org.cncf.model.filepath"
DOCUMENTS = (Manifest.FILE, Report.FILE)
"""What every bundle holds beside what its manifest lists; one that is signed holds its signature too."""


def files_of(folder: Path, manifest: Manifest) -> dict[str, FileEntry]:
    """Every file of a bundle, its documents first."""
    documents = {
        name: FileEntry(size=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in UNLISTED
        if (folder / name).exists()
    }
    return documents | dict(sorted(manifest.files.items()))


def model_config(folder: Path, manifest: Manifest, files: dict[str, FileEntry]) -> bytes:
    """ModelPack's description of the model; the same bundle gives the same bytes."""
    parts = Recipe.read(folder / "recipe.toml").parts
    formats = sorted({form.format for form in parts.named().values()})
    return _json(
        {
            "descriptor": {
                "name": manifest.checkpoint.name,
                "family": "ernie-4.5",
                "title": _title(manifest),
            },
            "config": {
                "architecture": "transformer",
                "format": "onnx",
                "precision": parts.experts.format,
                "quantization": "+".join(formats),
            },
            "modelfs": {"type": "layers", "diffIds": [f"sha256:{entry.sha256}" for entry in files.values()]},
        }
    )


def oci_manifest(manifest: Manifest, files: dict[str, FileEntry], config: bytes, config_digest: str) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": len(config)},
            "layers": [
                {
                    "mediaType": _media_type(path),
                    "digest": f"sha256:{entry.sha256}",
                    "size": entry.size,
                    "annotations": {FILEPATH: path},
                }
                for path, entry in files.items()
            ],
            "annotations": {"org.opencontainers.image.title": _title(manifest)},
        }
    )


class _Layer(BaseModel):
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    annotations: dict[str, str] = {}


class _OciManifest(BaseModel):
    schemaVersion: Literal[2]
    layers: list[_Layer]


def documents_of(data: bytes, address: Address) -> dict[str, FileEntry]:
    """The bundle's manifest, report and signature, as an OCI manifest lists them.

    Raises:
        UserError: it is no manifest of a bundle.
    """
    try:
        layers = _OciManifest.model_validate_json(data).layers
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{address} is no bundle ({where}: {first['msg']})", "Name one that `ernie-export push` wrote."
        ) from error
    found: dict[str, FileEntry] = {}
    for layer in layers:
        path = layer.annotations.get(FILEPATH)
        if path not in UNLISTED:
            continue
        if path in found:
            raise UserError(f"{address} lists {path} twice", "Name one that `ernie-export push` wrote.")
        if layer.size > LARGEST:
            raise UserError(
                f"{address} lists a {path} of {layer.size} bytes", "Name one that `ernie-export push` wrote."
            )
        found[path] = FileEntry(size=layer.size, sha256=layer.digest.removeprefix("sha256:"))
    for name in DOCUMENTS:
        if name not in found:
            raise UserError(
                f"{address} is no bundle: it lists no {name}", "Name one that `ernie-export push` wrote."
            )
    return found


def _media_type(path: str) -> str:
    if path.endswith((".bin", ".onnx")):
        return WEIGHT
    return DOCUMENT if path in (Report.FILE, SIGNATURE) else WEIGHT_CONFIG


def _title(manifest: Manifest) -> str:
    return f"{manifest.checkpoint.name}, {manifest.recipe}, for {manifest.target}"


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
