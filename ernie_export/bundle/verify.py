"""Whether a bundle is what was built: every file, the manifest, the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ernie_export.bundle.manifest import SIGNATURE, UNLISTED, FileEntry, Manifest, sha256_of
from ernie_export.bundle.provenance import Provenance
from ernie_export.errors import UserError
from ernie_export.progress import Progress, Silent, Step
from ernie_export.validate.document import LARGEST
from ernie_export.validate.report import Report


class Problem(NamedTuple):
    path: str
    """Inside the bundle, with `/`."""
    message: str


def verify(folder: Path, progress: Progress | None = None, content: bool = True) -> list[Problem]:
    """Every way in which `folder` differs from what its manifest lists and its report was sealed over.

    Without `content` the listed files are not read: names and sizes alone are compared.

    Raises:
        UserError: the folder is no bundle: it holds no manifest.
    """
    present: set[str] = set()
    problems = _walk(folder, folder, present)
    try:
        manifest = Manifest.read(folder)
    except UserError as error:
        if not os.path.lexists(folder / Manifest.FILE):
            raise
        return [*problems, Problem(Manifest.FILE, error.cause)]
    problems += _check_report(folder, present)
    if SIGNATURE in present and (folder / SIGNATURE).stat().st_size > LARGEST:
        problems.append(Problem(SIGNATURE, f"is over {LARGEST >> 20} MB"))
    files = manifest.files
    problems += [Problem(path, "is missing") for path in sorted(files.keys() - present)]
    extra = present - files.keys() - set(UNLISTED)
    problems += [Problem(path, "is not in the manifest") for path in sorted(extra)]
    listed = {path: entry for path, entry in sorted(files.items()) if path in present}
    with (progress or Silent()).step("Verify", sum(entry.size for entry in listed.values()), "B") as step:
        for path, entry in listed.items():
            problems += _check_file(folder, path, entry, step, content)
    return problems + _check_provenance(folder, manifest)


def _walk(folder: Path, root: Path, present: set[str]) -> list[Problem]:
    """Add every regular file below `folder` to `present`; links are not followed but are problems."""
    problems = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        # A name that is not UTF-8 is no name of ours; it must still be printable.
        path = os.fsencode(entry.relative_to(root)).decode("utf-8", "backslashreplace")
        if entry.is_symlink():
            problems.append(Problem(path, "is a symbolic link"))
        elif entry.is_dir():
            problems += _walk(entry, root, present)
        elif entry.is_file():
            present.add(path)
        else:
            problems.append(Problem(path, "is no file"))
    return problems


def _check_report(folder: Path, present: set[str]) -> list[Problem]:
    if Report.FILE not in present:
        return [Problem(Report.FILE, "is missing")]
    try:
        report = Report.read(folder / Report.FILE)
    except UserError as error:
        return [Problem(Report.FILE, error.cause)]
    if report.manifest_sha256 != sha256_of(folder / Manifest.FILE):
        return [Problem(Manifest.FILE, "is not the manifest that the report was sealed over")]
    return []


def _check_provenance(folder: Path, manifest: Manifest) -> list[Problem]:
    """That it tells of these very files and this checkpoint."""
    if Provenance.FILE not in manifest.files:
        return []
    try:
        provenance = Provenance.read(folder)
    except UserError as error:
        return [Problem(Provenance.FILE, error.cause)]
    if provenance is None:
        return []  # missing: told above
    if provenance.fingerprint != manifest.checkpoint.fingerprint:
        return [Problem(Provenance.FILE, "is of another checkpoint than the manifest")]
    files = {path: entry.sha256 for path, entry in manifest.files.items() if path != Provenance.FILE}
    if provenance.subjects() != files:
        return [Problem(Provenance.FILE, "tells of other files than the manifest lists")]
    return []


def _check_file(folder: Path, path: str, entry: FileEntry, step: Step, content: bool) -> list[Problem]:
    size = (folder / path).stat().st_size
    if size != entry.size:
        step.advance(entry.size)
        return [Problem(path, f"has {size} bytes, the manifest lists {entry.size}")]
    if content and sha256_of(folder / path, step) != entry.sha256:
        return [Problem(path, "does not have the SHA-256 that the manifest lists")]
    return []
