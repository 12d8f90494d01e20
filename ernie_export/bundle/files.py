"""The files in the folder of a bundle, against those that its manifest lists; the standard library alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from ernie_export.digest import sha256_of
from ernie_export.progress import Progress

MANIFEST, REPORT = "manifest.json", "report.json"
SIGNATURE = "model.sig"
"""Who stands behind the bundle: made over all its other files, so no manifest lists it."""
UNLISTED = (MANIFEST, REPORT, SIGNATURE)
"""What a bundle may hold that its manifest does not list."""


class Entry(Protocol):
    """What a manifest says of a file."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class Problem(NamedTuple):
    path: str
    """Inside the bundle, with `/`."""
    message: str


def walk(folder: Path) -> tuple[set[str], list[Problem]]:
    """Every regular file below `folder`; links are not followed but are problems."""
    present: set[str] = set()
    return present, _walk(folder, folder, present)


def _walk(folder: Path, root: Path, present: set[str]) -> list[Problem]:
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


def compare(
    folder: Path, files: Mapping[str, Entry], present: set[str], progress: Progress, content: bool = True
) -> list[Problem]:
    """How the files that are `present` differ from those listed; without `content` names and sizes alone."""
    problems = [Problem(path, "is missing") for path in sorted(files.keys() - present)]
    extra = present - files.keys() - set(UNLISTED)
    problems += [Problem(path, "is not in the manifest") for path in sorted(extra)]
    listed = {path: entry for path, entry in sorted(files.items()) if path in present}
    with progress.step("Verify", sum(entry.size for entry in listed.values()), "B") as step:
        for path, entry in listed.items():
            size = (folder / path).stat().st_size
            if size != entry.size:
                step.advance(entry.size)
                problems.append(Problem(path, f"has {size} bytes, the manifest lists {entry.size}"))
            elif content and sha256_of(folder / path, step) != entry.sha256:
                problems.append(Problem(path, "does not have the SHA-256 that the manifest lists"))
    return problems
