"""What is active and damaged is mended by installing the same again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.device.install import AlreadyActive, Offer, install, rollback
from ernie_export.device.place import Installed, Place, Refused
from ernie_export.device.status import status
from ernie_export.errors import UserError
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle
from tests.device.conftest import ANYBODY


def rotten(path: Path) -> None:
    """As a disk forgets: the same file, which the blob of that name is too."""
    with path.open("r+b") as file:
        file.write(b"\0" * 16)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda generation: rotten(generation / "bundle" / "weights" / "embedding.bin"),
    "manifest": lambda generation: rotten(generation / "bundle" / Manifest.FILE),
    "report": lambda generation: rotten(generation / "bundle" / Report.FILE),
    "record": lambda generation: rotten(generation / Installed.FILE),
    "a file is gone": lambda generation: (generation / "bundle" / "model.onnx").unlink(),
    "all files are gone": lambda generation: shutil.rmtree(generation / "bundle"),
    "all is gone": shutil.rmtree,
}


@pytest.fixture(scope="module")
def installed(bundle: BuiltBundle, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("installed") / "device")
    for recipe in ("int4", "int8"):
        install(Offer.find(str(bundle(recipe))), place, ANYBODY)
    return place


@pytest.fixture
def two(installed: Place, place: Place) -> Place:
    """Two generations, the second one active; its files are the blobs."""
    shutil.copytree(installed.root, place.root, symlinks=True)
    for path in place.root.glob("generations/*/bundle/**/*"):
        for blob in place.root.glob("blobs/*"):
            if path.is_file() and path.read_bytes() == blob.read_bytes():
                path.unlink()
                path.hardlink_to(blob)
    return place


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_same_again(bundle: BuiltBundle, two: Place, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ernie_export.device.install.try_out", lambda *_: None)  # the engine is what it was
    offer = Offer.find(str(bundle("int8")))
    with pytest.raises(AlreadyActive):
        install(offer, two, ANYBODY)
    DAMAGES[kind](two.generation(2))
    again = install(offer, two, ANYBODY)
    assert two.active() == again and again.number == (2 if kind == "all is gone" else 3)
    assert not verify(two.current / "bundle")
    with pytest.raises(AlreadyActive):
        install(offer, two, ANYBODY)
    if kind in ("record", "all is gone"):  # then nobody knows what was before it
        assert two.numbers() == [again.number]
    else:
        assert two.numbers() == [1, 3]
        assert rollback(two).number == 1


def test_status_of_what_is_damaged(two: Place) -> None:
    for number in (1, 2):
        rotten(two.generation(number) / Installed.FILE)
        found = status(two)
        assert found.active == 2 and found.damaged == [*range(1, number + 1)]
        assert [each.number for each in found.generations] == [*range(number + 1, 3)]


def test_a_refusal_that_nobody_can_read_is_one(two: Place) -> None:
    two.refuse(1, "It is not ready")
    rotten(two.generation(1) / Refused.FILE)
    assert "is damaged" in (status(two).generations[0].refused or "")
    with pytest.raises(UserError, match="no generation before 2"):
        rollback(two)
