"""What has changed from one bundle to another: weights by part, formats, quality, versions, and what would travel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.provenance import Provenance
from ernie_export.graph.weights import Stored, read_layout
from ernie_export.progress import Progress, Silent, Step
from ernie_export.recipe import Recipe
from ernie_export.validate.report import Report
from ernie_export.validate.sizes import part_of

PIECE = 8 << 20
"""Bytes of a tensor that are compared at once."""


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class Change(_Found):
    """Something that both bundles say of themselves, where they differ."""

    what: str
    before: str
    after: str


class PartChange(_Found):
    """The weights of one part of the model."""

    part: str
    before: int
    """Bytes."""
    after: int
    changed: int
    """Tensors that are new, gone, of another form, or of other bytes."""
    tensors: int
    """In either bundle."""


class MetricChange(_Found):
    name: str
    before: float | None
    after: float | None


class FileChange(_Found):
    path: str
    how: Literal["added", "removed", "changed"]
    size: int
    """Bytes it has now; had, if it was removed."""


class Difference(_Found):
    """What `diff --json` prints."""

    schema_version: Literal[1] = 1
    same: bool
    """Every file but the report, whose times differ, is the same."""
    changes: list[Change]
    parts: list[PartChange]
    metrics: list[MetricChange]
    files: list[FileChange]
    travels: int
    """Bytes that a device which has the first needs to have the second."""


def diff(before: Path, after: Path, progress: Progress | None = None) -> Difference:
    """From one bundle to another.

    Raises:
        UserError: one of them is no bundle, or damaged.
    """
    one, other = Manifest.read(before), Manifest.read(after)
    reports = Report.read(before / Report.FILE), Report.read(after / Report.FILE)
    files = _files(one, other)
    documents = sum((after / name).stat().st_size for name in UNLISTED if (after / name).exists())
    travels = sum(file.size for file in files if file.how != "removed")
    return Difference(
        same=one == other,
        changes=[*_said(one, other), *_made_by(before, after), *_formats(before, after)],
        parts=_parts(before, after, {file.path for file in files}, progress or Silent()),
        metrics=_metrics(*reports),
        files=files,
        travels=travels + (0 if one == other else documents),
    )


def _files(one: Manifest, other: Manifest) -> list[FileChange]:
    found = []
    for path in sorted({*one.files, *other.files}):
        old, new = one.files.get(path), other.files.get(path)
        if old is None or new is None:
            entry = new or old
            assert entry
            found.append(FileChange(path=path, how="added" if new else "removed", size=entry.size))
        elif old.sha256 != new.sha256:
            found.append(FileChange(path=path, how="changed", size=new.size))
    return found


def _said(one: Manifest, other: Manifest) -> list[Change]:
    facts = [
        ("checkpoint", one.checkpoint.name, other.checkpoint.name),
        ("fingerprint", one.checkpoint.fingerprint, other.checkpoint.fingerprint),
        ("target", one.target, other.target),
        ("recipe", one.recipe, other.recipe),
        ("verdict", one.verdict, other.verdict),
    ]
    for name in sorted({*one.software, *other.software}):
        facts.append((name, one.software.get(name, "-"), other.software.get(name, "-")))
    return [Change(what=what, before=old, after=new) for what, old, new in facts if old != new]


def _made_by(before: Path, after: Path) -> list[Change]:
    """What their provenance says, where either tells."""
    told = [Provenance.read(folder) for folder in (before, after)]
    commits = [(each.commit if each else None) or "not known" for each in told]
    return [Change(what="commit", before=commits[0], after=commits[1])] if commits[0] != commits[1] else []


def _formats(before: Path, after: Path) -> list[Change]:
    recipes = [Recipe.read(folder / "recipe.toml") for folder in (before, after)]
    found = [("context", *(str(recipe.context) for recipe in recipes))]
    for part, form in recipes[0].parts:
        found.append((f"format of {part}", _form(form), _form(getattr(recipes[1].parts, part, None))))
    return [Change(what=what, before=old, after=new) for what, old, new in found if old != new]


def _form(form: Any) -> str:
    block = getattr(form, "block_size", None)
    return f"{getattr(form, 'format', '-')}{f', blocks of {block}' if block else ''}"


def _metrics(one: Report, other: Report) -> list[MetricChange]:
    """Of quality, where they differ; what machine and time decide is left out."""
    names = sorted({*one.metrics, *other.metrics})
    rows = [
        MetricChange(name=name, before=one.metrics.get(name), after=other.metrics.get(name))
        for name in names
        if not name.startswith("memory.")
    ]
    return [row for row in rows if row.before != row.after]


def _parts(before: Path, after: Path, touched: set[str], progress: Progress) -> list[PartChange]:
    old, new = _tensors(before), _tensors(after)
    sizes = {"before": Counter[str](), "after": Counter[str]()}
    changed, tensors = Counter[str](), Counter[str]()
    doubtful = [name for name in new if name in old and new[name][0] in touched]
    with progress.step("Compare", sum(new[name][1].nbytes for name in doubtful), "B") as step:
        for name in sorted({*old, *new}):
            part = part_of(name)
            tensors[part] += 1
            for which, found in (("before", old), ("after", new)):
                if name in found:
                    sizes[which][part] += found[name][1].nbytes
            if name not in old or name not in new:
                changed[part] += 1
            elif name in doubtful:
                changed[part] += not _equal((before, *old[name]), (after, *new[name]), step)
    return [
        PartChange(
            part=part,
            before=sizes["before"][part],
            after=sizes["after"][part],
            changed=changed[part],
            tensors=tensors[part],
        )
        for part in sorted(tensors, key=lambda part: -max(sizes["before"][part], sizes["after"][part]))
    ]


def _tensors(folder: Path) -> dict[str, tuple[str, Stored]]:
    graph = next(folder.glob("*.onnx"))
    return {stored.name: (file.path, stored) for file in read_layout(graph) for stored in file.tensors}


def _equal(one: tuple[Path, str, Stored], other: tuple[Path, str, Stored], step: Step) -> bool:
    """Whether two stored tensors have the same form and bytes; read from their mappings piece by piece."""
    if (one[2].dtype, one[2].shape) != (other[2].dtype, other[2].shape):
        step.advance(other[2].nbytes)
        return False
    old, new = (
        np.memmap(folder / path, np.uint8, "r", stored.offset, (stored.nbytes,))
        for folder, path, stored in (one, other)
    )
    same = True
    for start in range(0, len(new), PIECE):
        piece = slice(start, start + PIECE)
        same = same and np.array_equal(old[piece], new[piece])
        step.advance(len(new[piece]))
    return same
