"""A switch that was cut off before the service was seen ready: it is proved later, or taken back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.bundle.verify import verify
from ernie_export.device import install as module
from ernie_export.device.install import AlreadyActive, Offer, install, rollback, settle
from ernie_export.device.place import Installed, Pending, Place
from ernie_export.device.service import Service
from ernie_export.device.status import status
from ernie_export.errors import UserError, WorkError
from tests.device.conftest import ANYBODY

WELL = Service(restart=["true"], ready=["true"], within=1)
ILL = Service(restart=["true"], ready=["sh", "-c", "echo no model; exit 1"], within=0.2)


class PowerLoss(BaseException):
    pass


@pytest.fixture(autouse=True)
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """These versions hold no engine."""
    monkeypatch.setattr(module, "try_out", lambda *_: None)
    monkeypatch.setattr(module, "require_suited", lambda *_: None)


def put(place: Place, version: Path, service: Service | None = None) -> Installed:
    return install(Offer.find(str(version)), place, ANYBODY, service)


def cut_off(place: Place, version: Path, monkeypatch: pytest.MonkeyPatch, at: int = 1) -> None:
    """The power goes when the service is started for the `at`th time; it is well before, and never ready."""
    started = 0

    def start_anew(service: Service) -> None:
        nonlocal started
        started += 1
        if started == at:
            raise PowerLoss
        raise WorkError("The service is not ready", "Look at the service's log.")

    with monkeypatch.context() as patch, pytest.raises(PowerLoss):
        patch.setattr(Service, "start_anew", start_anew)
        put(place, version, WELL)


def settled(place: Place, service: Service | None = None) -> Installed | None:
    with place.held():
        return settle(place, service)


def at_rest(place: Place, active: int | None) -> None:
    assert place.active_number() == active and place.pending() is None
    assert active is None or not verify(place.current / "bundle")
    assert [path.name for path in place.root.glob(".*")] == [".lock"]
    assert settled(place, ILL) is None  # nothing is asked any more


def test_the_service_becomes_ready(
    place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, versions[0])
    cut_off(place, versions[1], monkeypatch)
    assert (status(place).active, status(place).pending) == (2, 2)
    installed = settled(place)
    assert installed and installed.number == 2
    at_rest(place, 2)
    assert status(place).pending is None


def test_it_does_not(place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    put(place, versions[0])
    cut_off(place, versions[1], monkeypatch)
    with pytest.raises(WorkError, match=r"no model\); generation 1 is active again"):
        settled(place, ILL)
    assert "no model" in (place.refused(2) or "")
    at_rest(place, 1)


def test_there_is_nothing_to_go_back_to(
    place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(place, versions[0], monkeypatch)
    with pytest.raises(WorkError, match="no model"):
        settled(place, ILL)
    at_rest(place, None)


def test_it_was_cut_off_on_its_way_back(
    place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new version is not asked again, and the service is told of the old one."""
    put(place, versions[0])
    cut_off(place, versions[1], monkeypatch, at=2)
    told = Service(restart=["touch", str(place.root / "told")], ready=["true"], within=1)
    with pytest.raises(WorkError, match="is not ready; generation 1 is active again"):
        settled(place, told)
    assert (place.root / "told").exists()
    at_rest(place, 1)


def test_it_was_cut_off_before_the_switch(
    place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, versions[0])

    def switch(*_: object) -> None:
        raise PowerLoss

    with monkeypatch.context() as patch, pytest.raises(PowerLoss):
        patch.setattr(Place, "switch", switch)
        put(place, versions[1], WELL)
    assert status(place).pending == 2
    installed = settled(place, ILL)  # which has nothing to do with it
    assert installed and installed.number == 1
    at_rest(place, 1)


def test_the_next_installation_settles_it(
    place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ill version is no one's way back, and a well one is not installed twice."""
    put(place, versions[0])
    cut_off(place, versions[1], monkeypatch)
    with pytest.raises(WorkError, match="generation 1 is active again"):
        put(place, versions[1], ILL)
    assert [each.number for each in place.all()] == [1, 2, 3] and place.refused(2) and place.refused(3)
    at_rest(place, 1)
    cut_off(place, versions[1], monkeypatch)
    with pytest.raises(AlreadyActive):
        put(place, versions[1], WELL)
    at_rest(place, 4)
    assert rollback(place).number == 1


def test_one_may_go_back_unasked(
    place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, versions[0])
    cut_off(place, versions[1], monkeypatch)
    assert rollback(place).number == 1
    at_rest(place, 1)


def test_the_way_back_is_kept(
    place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what is active takes the place of one that was damaged, which is not the one before it."""
    put(place, versions[0])
    (place.bundle(1) / "recipe.toml").unlink()
    cut_off(place, versions[0], monkeypatch)
    with place.held():
        place.collect()
    with pytest.raises(WorkError, match="generation 1 is active again"):
        settled(place, ILL)
    assert place.active_number() == 1


def test_what_anybody_could_have_written_is_not_run(
    place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(place, versions[0], monkeypatch)
    (place.root / Pending.FILE).chmod(0o666)
    with pytest.raises(UserError, match=r"Everybody can write .*pending\.json"):
        settled(place)
    assert place.pending()


def test_the_command(place: Place, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ernie_export", "device", *words, "--root", str(place.root)]
        return subprocess.run(command, capture_output=True, text=True)

    nothing = run("settle")
    assert nothing.returncode == 0 and "nothing is installed" in nothing.stdout
    put(place, versions[0])
    cut_off(place, versions[1], monkeypatch)
    told = run("status")
    assert "2 *" in told.stdout and "`ernie-export device settle`" in told.stderr
    assert json.loads(run("settle", "--json").stdout)["active"] == 2
    at_rest(place, 2)
