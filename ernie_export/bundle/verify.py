"""Whether a bundle is what was built: every file, the manifest, the report."""

from __future__ import annotations

import os
from pathlib import Path

from ernie_export.bundle import sbom
from ernie_export.bundle.files import SIGNATURE, Problem, compare, walk
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.provenance import Provenance
from ernie_export.digest import sha256_of
from ernie_export.engine.info import EngineInfo
from ernie_export.errors import UserError
from ernie_export.progress import Progress, Silent
from ernie_export.validate.document import LARGEST
from ernie_export.validate.report import Report

MADE_ON_DEVICE = (EngineInfo.FILE, sbom.FILE, Provenance.FILE)
"""The files of a kit that a device writes anew when it builds the engine."""


def verify(folder: Path, progress: Progress | None = None, content: bool = True) -> list[Problem]:
    """Every way in which `folder` differs from what its manifest lists and its report was sealed over.

    Without `content` the listed files are not read: names and sizes alone are compared.

    Raises:
        UserError: the folder is no bundle: it holds no manifest.
    """
    present, problems = walk(folder)
    try:
        manifest = Manifest.read(folder)
    except UserError as error:
        if not os.path.lexists(folder / Manifest.FILE):
            raise
        return [*problems, Problem(Manifest.FILE, error.cause)]
    problems += _check_report(folder, present)
    if SIGNATURE in present and (folder / SIGNATURE).stat().st_size > LARGEST:
        problems.append(Problem(SIGNATURE, f"is over {LARGEST >> 20} MB"))
    problems += compare(folder, manifest.files, present, progress or Silent(), content)
    return problems + _check_provenance(folder, manifest) + _check_origin(folder, manifest)


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


def _check_origin(folder: Path, manifest: Manifest) -> list[Problem]:
    """Of what was built from a kit: that the kit's manifest is along, and the files of both are the same."""
    if manifest.kit is None:
        return []
    path = f"origin/{Manifest.FILE}"
    if path not in manifest.files or manifest.files[path].sha256 != manifest.kit:
        return [Problem(path, "is not the manifest of the kit that the bundle was built from")]
    try:
        kit = Manifest.load(folder / path)
    except UserError as error:
        return [Problem(path, error.cause)]
    if kit.checkpoint != manifest.checkpoint:
        return [Problem(Manifest.FILE, "tells of another checkpoint than its kit")]
    return [
        Problem(name, "is not the kit's, and was not made on the device")
        for name in sorted(kit.files.keys() & manifest.files.keys() - set(MADE_ON_DEVICE))
        if kit.files[name].sha256 != manifest.files[name].sha256
    ]
