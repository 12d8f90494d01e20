"""A bundle from a registry into a folder: only what is not there yet travels."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel

from ernie_export import lock
from ernie_export.bundle.manifest import FileEntry, Manifest, sha256_of
from ernie_export.bundle.verify import verify
from ernie_export.bundle.write import publish
from ernie_export.distribute.artifact import documents_of
from ernie_export.distribute.push import AT_ONCE
from ernie_export.distribute.registry import Registry
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Progress, Silent, Step
from ernie_export.readable import size


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
        pulling = _Pulling(registry, gathered, output)
        pulling.fetch(documents, Silent())
        manifest = pulling.manifest(documents)
        pulling.fetch(manifest.files, progress)
        bundle = pulling.assemble(documents | manifest.files)
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
        received=pulling.received,
        there=sum(entry.size for entry in (documents | manifest.files).values()) - pulling.received,
    )


class _Pulling:
    def __init__(self, registry: Registry, gathered: Path, earlier: Path):
        self._registry, self._gathered = registry, gathered
        self._earlier = _files_by_digest(earlier)
        self.received = 0

    def fetch(self, files: dict[str, FileEntry], progress: Progress) -> None:
        blobs = {entry.sha256: entry for entry in files.values()}
        self._require_room(sum(entry.size - self._has(entry) for entry in blobs.values()))
        with (
            progress.step("Pull", sum(entry.size for entry in blobs.values()), "B") as step,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            fetches = [pool.submit(self._fetch, entry, step) for entry in blobs.values()]
            try:
                for each in fetches:
                    self.received += each.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def manifest(self, documents: dict[str, FileEntry]) -> Manifest:
        """The bundle's own; its paths cannot lead out of the bundle.

        Raises:
            UserError: it is none, or damaged.
        """
        return Manifest.load(self._blob(documents[Manifest.FILE]))

    def assemble(self, files: dict[str, FileEntry]) -> Path:
        """Every blob under its path, in a folder of its own."""
        bundle = self._gathered / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        for path, entry in files.items():
            place = bundle / path
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self._blob(entry), place)
            except OSError:  # a file system without links
                shutil.copyfile(self._blob(entry), place)
        return bundle

    def _fetch(self, entry: FileEntry, step: Step) -> int:
        """Bytes that came from the registry."""
        if earlier := self._earlier.get(entry.sha256):
            shutil.copyfile(earlier, self._blob(entry))
            if sha256_of(self._blob(entry)) == entry.sha256:
                step.advance(entry.size)
                return 0
            self._blob(entry).unlink()
        missing = entry.size - self._has(entry)
        self._registry.download(f"sha256:{entry.sha256}", entry.size, self._blob(entry), step)
        return missing

    def _has(self, entry: FileEntry) -> int:
        blob = self._blob(entry)
        return min(blob.stat().st_size, entry.size) if blob.is_file() else 0

    def _blob(self, entry: FileEntry) -> Path:
        return self._gathered / entry.sha256

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._gathered).free
        if needed > free:
            raise WorkError(
                f"The bundle needs {size(needed)} more and the disk of {self._gathered.parent} has {size(free)}",
                "Make room, or name an --output on another disk.",
            )


def _files_by_digest(folder: Path) -> dict[str, Path]:
    """What an earlier bundle holds; nothing where there is none, or it cannot be read."""
    try:
        manifest = Manifest.read(folder)
    except UserError:
        return {}
    return {
        entry.sha256: folder / path for path, entry in manifest.files.items() if (folder / path).is_file()
    }
