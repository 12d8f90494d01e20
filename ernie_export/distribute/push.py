"""A bundle into a registry: only what is not there yet travels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.distribute.artifact import files_of, model_config, oci_manifest
from ernie_export.distribute.blobs import AT_ONCE
from ernie_export.distribute.registry import Registry
from ernie_export.errors import WorkError
from ernie_export.progress import Progress, Silent


class Pushed(BaseModel):
    """What `push --json` prints; bytes."""

    address: str
    """With the digest: it means this state for ever."""
    tag: str | None
    sent: int
    there: int
    """What the registry had already."""


def push(folder: Path, registry: Registry, progress: Progress | None = None) -> Pushed:
    """Upload a bundle's files, then the manifest that makes it one.

    A push that ends early leaves the tag as it was; the next one goes on where it stopped.

    Raises:
        UserError: the folder is no bundle, a file is not what its manifest lists, or the registry
            refuses the user.
        WorkError: the registry cannot be reached, or refuses what it is given.
    """
    progress = progress or Silent()
    manifest = Manifest.read(folder)
    if problems := verify(folder, content=False):
        raise WorkError(
            f"{folder} is not what was built: {problems[0].path}: {problems[0].message}",
            "Fetch or build the bundle again.",
        )
    files = files_of(folder, manifest)
    missing = {path: entry for path, entry in files.items() if not registry.has(f"sha256:{entry.sha256}")}
    sent = sum(entry.size for entry in missing.values())
    with progress.step("Push", sent, "B") as step, ThreadPoolExecutor(AT_ONCE) as pool:
        uploads = [
            pool.submit(registry.upload, folder / path, f"sha256:{entry.sha256}", entry.size, step)
            for path, entry in missing.items()
        ]
        try:
            for upload in uploads:
                upload.result()
        finally:
            pool.shutdown(cancel_futures=True)
    config = model_config(folder, manifest, files)
    digest = registry.put_manifest(oci_manifest(manifest, files, config, registry.upload_bytes(config)))
    return Pushed(
        address=str(registry.address.at(digest)),
        tag=registry.address.tag,
        sent=sent,
        there=sum(entry.size for entry in files.values()) - sent,
    )
