"""installed.json, refused.json, pending.json: what a device noted, and a disk or a person has changed since."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ernie_export.device.place import Installed, Pending, Place, Refused
from ernie_export.device.service import Service
from ernie_export.device.status import status
from ernie_export.errors import UserError
from tests.fuzz.harness import as_object, canonical

JSON = True
TOKENS = (
    b'"number": ',
    b'"before": ',
    b'"tried": {',
    b'"metrics": {',
    b'"reason": "',
    b'"NaN"',
    b'"signer": null',
)
RECORD = Installed(
    number=2,
    source="oci://a/b@sha256:" + "0" * 64,
    manifest_sha256="ab" * 32,
    checkpoint="nano",
    recipe="int4",
    target="cpu",
    built="2030-01-01T00:00:00+00:00",
    signer="release",
    before=1,
)


def seeds() -> Iterator[bytes]:
    yield RECORD.render()
    yield RECORD.model_copy(update={"number": 1, "before": None, "signer": None}).render()
    yield Refused(reason="It is not ready").render()
    yield Pending(number=2, before=1, service=Service(restart=["true"], ready=["true"]), observe=0).render()


def parse(data: bytes, folder: Path) -> None:
    """Generation 1 is sound; the second, or that it is pending, is what the bytes say, and active."""
    value = as_object(data)
    if value is not None:
        try:
            data = canonical(value)
        except (UnicodeEncodeError, ValueError):  # half of a surrogate pair, or a number that no file holds
            return
    root = folder / "device"
    shutil.rmtree(root, ignore_errors=True)
    place = Place(root)
    for number in (1, 2):
        place.bundle(number).mkdir(parents=True)
        record = RECORD.model_copy(update={"number": number, "before": number - 1 or None})
        (place.generation(number) / Installed.FILE).write_bytes(record.render())
    place.switch(2)
    if b'"service"' in data:
        (root / Pending.FILE).write_bytes(data)
    elif b'"reason"' in data:
        (place.generation(2) / Refused.FILE).write_bytes(data)
    else:
        (place.generation(2) / Installed.FILE).write_bytes(data)
    shown = status(place)
    assert shown.active == 2 and [*(each.number for each in shown.generations), *shown.damaged] == [1, 2]
    active = place.active()
    assert active is not None
    try:
        place.earlier(active)
    except UserError:
        assert active.before != 1
    with place.held():
        place.collect()
    assert place.active() == active
