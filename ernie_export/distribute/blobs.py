"""A folder of files named by their SHA-256. What stands under its name is whole, was checked, and is on the disk.

The names themselves may be lost with the power: then a file is fetched again. Bundles have names of their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

from ernie_export import atomic
from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.digest import pieces, sha256_of
from ernie_export.distribute.registry import Registry
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Step
from ernie_export.readable import size

AT_ONCE = 4
"""Files that travel at a time."""
PARTIAL = ".partial"


class Source(Protocol):
    def fetch(self, path: str, entry: FileEntry, to: Path, step: Step) -> int:
        """Make the file `to` from the bundle's file `path`, checked and synced; the bytes that travelled.

        What stands at `to` already may be its beginning.
        """
        ...


class RegistrySource:
    def __init__(self, registry: Registry):
        self._registry = registry

    def fetch(self, path: str, entry: FileEntry, to: Path, step: Step) -> int:
        there = to.stat().st_size if to.exists() else 0
        self._registry.download(f"sha256:{entry.sha256}", entry.size, to, step)
        return max(entry.size - there, 0)


class FolderSource:
    def __init__(self, folder: Path):
        self._folder = folder

    def fetch(self, path: str, entry: FileEntry, to: Path, step: Step) -> int:
        """Raises WorkError where the file is not what its manifest lists."""
        state = hashlib.sha256()
        with _regular(self._folder / path) as source, to.open("wb") as target:
            for piece in pieces(source, entry.size):
                state.update(piece)
                target.write(piece)
                step.advance(len(piece))
            target.flush()
            os.fsync(target.fileno())
        if state.hexdigest() != entry.sha256:
            to.unlink()
            raise WorkError(
                f"{self._folder / path} is not the file that the manifest lists",
                "Fetch or build the bundle again.",
            )
        return entry.size


def _regular(path: Path) -> BinaryIO:
    """Opened: no link is followed, and no pipe is waited for.

    Raises:
        WorkError: it is no regular file, or cannot be read.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise WorkError(
            f"{path} cannot be read ({error.strerror})", "Fetch or build the bundle again."
        ) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise WorkError(f"{path} is no file", "Fetch or build the bundle again.")
    return file


class Blobs:
    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, entry: FileEntry) -> Path:
        return self.folder / entry.sha256

    def fetch(self, files: Mapping[str, FileEntry], source: Source, step: Step) -> int:
        """Every file that is not here yet, several at a time; the bytes that travelled.

        Raises:
            WorkError: the disk has no room for them, or the source fails.
        """
        wanted = {entry.sha256: path for path, entry in files.items() if not self.path(entry).exists()}
        step.advance(sum(entry.size for path, entry in files.items() if wanted.get(entry.sha256) != path))
        self._require_room(files[path] for path in wanted.values())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            fetches = [pool.submit(self._fetch, path, files[path], source, step) for path in wanted.values()]
            try:
                travelled = sum(each.result() for each in fetches)
            finally:
                pool.shutdown(cancel_futures=True)
        return travelled

    def drop_damaged(self, files: Mapping[str, FileEntry]) -> None:
        """Remove those of the files that are not what their names say any more: a disk forgets.

        A bundle that links to one keeps what it has.
        """
        here = {self.path(entry) for entry in files.values() if self.path(entry).exists()}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for path, digest in zip(here, pool.map(sha256_of, here), strict=True):
                if digest != path.name:
                    path.unlink()

    def take(self, files: Mapping[str, FileEntry], bundle: Path) -> None:
        """Copies of those files that a bundle on this machine holds too, as far as they are whole."""
        try:
            manifest = Manifest.read(bundle)
        except UserError:
            return
        held = {entry.sha256: path for path, entry in manifest.files.items() if (bundle / path).is_file()}
        source = FolderSource(bundle)
        for entry in files.values():
            if entry.sha256 in held and not self.path(entry).exists():
                try:
                    self._fetch(held[entry.sha256], entry, source, _Unseen())
                except WorkError:  # damaged there: it is fetched
                    continue

    def assemble(self, files: Mapping[str, FileEntry], bundle: Path) -> None:
        """Every file under its path in the new folder `bundle`; they are the blobs themselves, linked."""
        for path, entry in files.items():
            place = bundle / path
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.path(entry), place)
            except OSError:  # a file system without links
                shutil.copyfile(self.path(entry), place)
                atomic.sync(place)

    def _fetch(self, path: str, entry: FileEntry, source: Source, step: Step) -> int:
        partial = self.folder / f"{entry.sha256}{PARTIAL}"
        travelled = source.fetch(path, entry, partial, step)
        os.rename(partial, self.path(entry))
        return travelled

    def _require_room(self, entries: Iterable[FileEntry]) -> None:
        needed = 0
        for entry in entries:
            partial = self.folder / f"{entry.sha256}{PARTIAL}"
            needed += max(entry.size - (partial.stat().st_size if partial.exists() else 0), 0)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise WorkError(
                f"The bundle needs {size(needed)} more, and the disk of {self.folder.parent} has {size(free)}",
                "Make room, or choose a place on another disk.",
            )


class _Unseen:
    def advance(self, amount: float = 1) -> None:
        """Shown when the file is found to be here."""
