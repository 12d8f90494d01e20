"""A kit on a device: built there by the steps of its own program, and then a version like every other."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.device.install import Offer, install, rollback
from ernie_export.device.place import Place
from ernie_export.device.status import status
from ernie_export.digest import sha256_of
from ernie_export.distribute.address import Address
from ernie_export.distribute.policy import Policy
from ernie_export.distribute.push import push
from ernie_export.distribute.registry import Registry
from ernie_export.distribute.signing import sign, signer_of
from ernie_export.errors import ErnieExportError, UserError, WorkError
from ernie_export.kit import stage
from tests.conftest import BuiltBundle
from tests.device.conftest import ANYBODY, resealed
from tests.distribute.docker_registry import running
from tests.distribute.test_signing import key_pair
from tests.kit.making import HERE, packed
from tests.validate.planting import stored


def test_a_kit_is_built_and_switched_to(bundle: BuiltBundle, kit: Path, place: Place) -> None:
    install(Offer.find(str(bundle("int8"))), place, ANYBODY)
    installed = install(Offer.find(str(kit)), place, ANYBODY)
    digest = sha256_of(kit / Manifest.FILE)
    assert installed.number == 2 and installed.kit == digest
    built = Manifest.read(place.current / "bundle")
    assert built.kit == digest and {"built on target", "ran on target"} <= {c.where for c in built.claims}
    assert not verify(place.current / "bundle") and not verify(place.generation(2) / "kit")
    assert [each.kit for each in status(place).generations] == [None, digest]
    assert not place.built.exists()
    weights = "weights/layer-001.bin"
    blob = place.root / "blobs" / built.files[weights].sha256
    assert blob.samefile(place.current / "bundle" / weights)  # nothing is stored twice
    with pytest.raises(UserError, match="is what is active here already"):
        install(Offer.find(str(kit)), place, ANYBODY)
    assert rollback(place).number == 1


def test_a_signed_kit_from_a_registry(kit: Path, place: Place, tmp_path: Path) -> None:
    """What was signed stays beside what was built from it."""
    folder = Path(shutil.copytree(kit, tmp_path / "kit"))
    private, public = key_pair(tmp_path, "release")
    sign(folder, private)
    policy = Policy.of_key(public)
    with running(tmp_path / "registry") as started:
        address = started.address("kits")
        push(folder, Registry(Address.parse(address), plain_http=True))
        installed = install(Offer.find(address, plain_http=True), place, policy)
    assert installed.signer and installed.kit == sha256_of(folder / Manifest.FILE)
    assert signer_of(place.generation(1) / "kit", policy) == installed.signer
    origin = place.current / "bundle" / "origin"
    assert (origin / "model.sig").read_bytes() == (folder / "model.sig").read_bytes()
    with pytest.raises(ErnieExportError, match="is not signed"):
        install(Offer.find(str(kit)), Place(tmp_path / "another"), policy)


def test_interrupted_it_goes_on(kit: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run, ran = stage.run, []

    def cut(name: str, *more: Any) -> dict[str, Any]:
        ran.append(name)
        if ran == ["engine", "answers", "speed"]:
            raise KeyboardInterrupt
        return run(name, *more)

    monkeypatch.setattr(stage, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        install(Offer.find(str(kit)), place, ANYBODY)
    assert place.active() is None and place.built.exists()
    ran.clear()
    assert install(Offer.find(str(kit)), place, ANYBODY).number == 1
    assert ran == ["speed"] and not place.built.exists()


def test_a_kit_that_talks_nonsense(bundle: BuiltBundle, kit: Path, place: Place, tmp_path: Path) -> None:
    install(Offer.find(str(bundle("int4"))), place, ANYBODY)
    folder = Path(shutil.copytree(kit, tmp_path / "kit"))
    stored("layers.1.experts.down", lambda values: values[::-1])(folder)
    with pytest.raises(WorkError, match="does not answer here as the checkpoint's own model does"):
        install(Offer.find(str(resealed(folder))), place, ANYBODY)
    assert [each.number for each in place.all()] == [1] and not verify(place.current / "bundle")


def test_a_kit_for_another_machine(bundle: BuiltBundle, place: Place, tmp_path: Path) -> None:
    other = next(target for machine, target in HERE.items() if machine != platform.machine())
    kit = packed(bundle("int4"), tmp_path / "kit", other)
    with pytest.raises(UserError, match="this machine is"):
        install(Offer.find(str(kit)), place, Policy(unsigned=True))
    assert place.active() is None
