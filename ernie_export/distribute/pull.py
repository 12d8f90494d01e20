"""A bundle from a registry into a folder: only what is not there yet travels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pydantic import BaseModel

from ernie_export import lock
from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.bundle.publish import publish
from ernie_export.bundle.verify import verify
from ernie_export.distribute.artifact import documents_of
from ernie_export.distribute.blobs import Blobs, RegistrySource, Source
from ernie_export.distribute.registry import Registry
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Progress, Silent


class Pulled(BaseModel):
    """What `pull --json` prints; bytes."""

    address: str
    """With the digest."""
    output: str
    received: int
    there: int
    """What an earlier bundle at the output, or an earlier try, had already."""


def pull(registry: Registry, output: Path, replace: bool = False, progress: Progress | None = None) -> Pulled:
    """Fetch the bundle at the registry's address to the folder `output`.

    The blobs gather in `.NAME.pull` beside it, named by their digests, so that a pull that ends early
    goes on where it stopped, and one that is to replace a bundle takes from it what has not changed.

    Raises:
        UserError: there is no such bundle, or the output exists and `replace` is not given.
        WorkError: the registry cannot be reached, gives other bytes, or the disk has no room.
    """
    progress = progress or Silent()
    output = output.absolute()
    if os.path.lexists(output) and not (replace and (output / Manifest.FILE).is_file()):
        remedy = "Name another --output, or add --replace." if (output / Manifest.FILE).is_file() else ""
        raise UserError(f"{output} exists", remedy or "Name another --output: what it holds is not touched.")
    digest, data = registry.manifest()
    documents = documents_of(data, registry.address)
    gathered = output.parent / f".{output.name}.pull"
    gathered.mkdir(parents=True, exist_ok=True)
    with lock.held(gathered):
        blobs, source = Blobs(gathered), RegistrySource(registry)
        received, manifest = fetch_documents(blobs, documents, source)
        files = documents | manifest.files
        blobs.take(files, output)
        with progress.step("Pull", sum(entry.size for entry in files.values()), "B") as step:
            received += blobs.fetch(files, source, step)
        bundle = gathered / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        blobs.assemble(files, bundle)
        if problems := verify(bundle, content=False):
            raise WorkError(
                f"{registry.address} is no whole bundle: {problems[0].path}: {problems[0].message}",
                "Push it again.",
            )
        publish(bundle, output, replace)
        shutil.rmtree(gathered)
    return Pulled(
        address=str(registry.address.at(digest)),
        output=str(output),
        received=received,
        there=sum(entry.size for entry in files.values()) - received,
    )


def fetch_documents(blobs: Blobs, documents: dict[str, FileEntry], source: Source) -> tuple[int, Manifest]:
    """The bytes that travelled, and the bundle's manifest, whose paths cannot lead out of the bundle.

    Raises:
        UserError: the manifest is none, or damaged.
    """
    with Silent().step("Documents") as step:
        received = blobs.fetch(documents, source, step)
    return received, Manifest.load(blobs.path(documents[Manifest.FILE]))
