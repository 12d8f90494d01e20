"""A machine that has too little of something, or another process at the same work."""

from __future__ import annotations

import fcntl
import os

from ernie_export.checkpoint import embedded
from tests.bad_input.attack import Arguments, Attacks, Place, edit_json

MACHINE = Attacks("Machine")
KEPT: list[int] = []
"""Descriptors that must stay open while the attack runs."""


@MACHINE.add("a disk without room for the weights", 1, leaves_partial=True, under=("small disk", "4m"))
def _(place: Place) -> Arguments:
    place.output.parent.mkdir()
    return place.build(embedded.folder())


@MACHINE.add("a disk that is full already", 1, leaves_partial=True, under=("small disk", "16k"))
def _(place: Place) -> Arguments:
    place.output.parent.mkdir()
    return place.build(embedded.folder())


@MACHINE.add("a disk that fills half-way", 1, leaves_partial=True, under=("small disk", "6100k"))
def _(place: Place) -> Arguments:
    place.output.parent.mkdir()
    return place.build(embedded.folder())


@MACHINE.add("a limit of file size", 1, leaves_partial=True, under=("prlimit", "--fsize=500000"))
def _(place: Place) -> Arguments:
    return place.build(embedded.folder())


@MACHINE.add("more shards than files may be open", 1, under=("prlimit", "--nofile=12"))
def _(place: Place) -> Arguments:
    return ["inspect", place.tiny().write(shards=16)]


@MACHINE.add("not enough memory for a long context", 1, under=("prlimit", "--as=4000000000"))
def _(place: Place) -> Arguments:
    folder = place.bundle()
    edit_json(folder / "engine.json", max_context=1_000_000_000)
    return ["generate", folder, "--prompt", "The", "--max-tokens", "500000000"]


@MACHINE.add("another build at the same output", 1, leaves_partial=True)
def _(place: Place) -> Arguments:
    partial = place.output.parent / f".{place.output.name}.partial"
    partial.mkdir(parents=True)
    descriptor = os.open(partial / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    KEPT.append(descriptor)
    return place.build(embedded.folder())
