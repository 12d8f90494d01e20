"""Finishing a bundle: its bill of materials, provenance, manifest and report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ernie_export import atomic
from ernie_export.bundle import sbom
from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.bundle.provenance import Provenance
from ernie_export.digest import sha256_of
from ernie_export.progress import Progress, Silent
from ernie_export.validate.report import Claim, Report


def seal(
    folder: Path,
    report: Report,
    claims: Sequence[Claim],
    progress: Progress | None = None,
    digests: Mapping[str, str] | None = None,
) -> Manifest:
    """Write sbom.cdx.json and provenance.json, manifest.json over every file in `folder`, and report.json with
    the manifest's SHA-256.

    `claims` are those of the build; the report adds what validation saw.  `digests` are the SHA-256 by
    path of files that were hashed while they were written, and need not be read again.
    """
    known = digests or {}
    made_here = [folder / name for name in (sbom.FILE, Provenance.FILE, *UNLISTED)]
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in made_here]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    unread = sum(path.stat().st_size for name, path in names.items() if name not in known)
    with (progress or Silent()).step("Seal", unread, "B") as step:
        files = {
            name: FileEntry(size=path.stat().st_size, sha256=known.get(name) or sha256_of(path, step))
            for name, path in names.items()
        }
    of = report.checkpoint, report.recipe, report.target
    files[sbom.FILE] = _put(folder / sbom.FILE, sbom.sbom(*of, files, report.software))
    provenance = Provenance.made(*of, files, report.software)
    files[Provenance.FILE] = _put(folder / Provenance.FILE, provenance.render())
    manifest = Manifest(
        checkpoint=report.checkpoint,
        recipe=report.recipe,
        target=report.target,
        files=files,
        software=report.software,
        verdict=report.verdict,
        claims=[*claims, *report.claims],
    )
    manifest.write(folder / Manifest.FILE)
    digest = sha256_of(folder / Manifest.FILE)
    report.model_copy(update={"manifest_sha256": digest}).write(folder / Report.FILE)
    return manifest


def _put(path: Path, data: bytes) -> FileEntry:
    atomic.write(path, data)
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
