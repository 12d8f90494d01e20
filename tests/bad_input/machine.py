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


MIDWAY = "ernie_export.streaming:read_layout"
"""What a build calls before it quantizes."""


def with_own_weights(place: Place) -> Arguments:
    """A build of ernie-nano, whose weights are no link here."""
    folder = place.nano()
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data)
    return place.build(folder)


@MACHINE.add(
    "a shard that changes while it is read",
    2,
    leaves_partial=True,
    changes=True,
    under=("meddling", "touch", "nano/model.safetensors", MIDWAY),
)
def _(place: Place) -> Arguments:
    return with_own_weights(place)


@MACHINE.add(
    "a shard that is cut short while it is read",
    2,
    leaves_partial=True,
    changes=True,
    like="a shard that changes while it is read",
    under=("meddling", "cut", "nano/model.safetensors", "12000000", MIDWAY),
)
def _(place: Place) -> Arguments:
    return with_own_weights(place)


@MACHINE.add("too little memory for one layer of the reference", 1, under=("meddling", "memory", "1000000"))
def _(place: Place) -> Arguments:
    return ["validate", place.bundle()]


@MACHINE.add("another build at the same output", 1, leaves_partial=True)
def _(place: Place) -> Arguments:
    partial = place.output.parent / f".{place.output.name}.partial"
    partial.mkdir(parents=True)
    descriptor = os.open(partial / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    KEPT.append(descriptor)
    return place.build(embedded.folder())
