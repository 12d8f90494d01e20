"""Installing, switching and going back, with real bundles."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.device import service as module
from ernie_export.device.install import Offer, install, rollback
from ernie_export.device.place import Place
from ernie_export.device.service import Service
from ernie_export.distribute.address import Address
from ernie_export.distribute.policy import Policy
from ernie_export.distribute.push import push
from ernie_export.distribute.registry import Registry
from ernie_export.errors import ErnieExportError, UserError, WorkError
from ernie_export.plan import machine
from tests.conftest import BuiltBundle
from tests.device.conftest import ANYBODY, resealed
from tests.distribute.docker_registry import running


def offer(folder: Path) -> Offer:
    return Offer.find(str(folder))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def altered(bundle: Path, folder: Path, **report: object) -> Path:
    """Another bundle of the same model: its report says something else."""
    shutil.copytree(bundle, folder)
    (folder / "recipe.toml").write_text(f"# {sorted(report.items())}\n{(folder / 'recipe.toml').read_text()}")
    return resealed(folder, **report)


def test_three_generations(bundle: BuiltBundle, place: Place, tmp_path: Path) -> None:
    first = install(offer(bundle("int4")), place, ANYBODY)
    assert (first.number, first.before, first.signer) == (1, None, None)
    assert contents(place.current / "bundle") == contents(bundle("int4"))
    second = install(offer(bundle("int8")), place, ANYBODY)
    assert (second.number, second.before) == (2, 1)
    assert place.active() == second and not verify(place.current / "bundle")
    assert rollback(place) == first and place.active() == first
    with pytest.raises(UserError, match="no generation before 1"):
        rollback(place)
    third = install(offer(bundle("int8")), place, ANYBODY)
    assert (third.number, third.before) == (3, 1)
    assert [each.number for each in place.all()] == [1, 3]
    with place.held():
        assert place.collect() == 0
    kept = {entry.sha256 for number in (1, 3) for entry in Manifest.read(place.bundle(number)).files.values()}
    blobs = {path.name for path in (place.root / "blobs").iterdir()}
    assert kept < blobs and len(blobs - kept) == 4  # the manifests and reports


def test_what_is_there_does_not_travel(bundle: BuiltBundle, place: Place, tmp_path: Path) -> None:
    with running(tmp_path / "registry") as started:
        address = started.address("device")
        push(bundle("int4"), Registry(Address.parse(address), plain_http=True))
        install(Offer.find(address, plain_http=True), place, ANYBODY)
        newer = altered(bundle("int4"), tmp_path / "newer", time="2999-01-01T00:00:00+00:00")
        push(newer, Registry(Address.parse(started.address("device", "2")), plain_http=True))
        before = {path.name for path in (place.root / "blobs").iterdir()}
        installed = install(Offer.find(started.address("device", "2"), plain_http=True), place, ANYBODY)
    assert "@sha256:" in installed.source
    new = {path.name for path in (place.root / "blobs").iterdir()} - before
    assert len(new) == 5  # the recipe, the manifest, the report, the bill of materials, the provenance
    assert contents(place.current / "bundle") == contents(newer)


@pytest.mark.parametrize(
    "kind", ["twice", "older", "unsigned", "damaged", "hostile target", "nonsense", "no room"]
)
def test_what_is_refused_changes_nothing(
    bundle: BuiltBundle, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    install(offer(bundle("int4")), place, ANYBODY)
    before, policy, folder = place.active(), ANYBODY, bundle("int4")
    if kind == "older":
        folder = altered(folder, tmp_path / "older", time="2001-01-01T00:00:00+00:00")
        policy = Policy(unsigned=True)
    elif kind == "unsigned":
        folder, policy = bundle("int8"), Policy()
    elif kind == "damaged":
        folder = altered(folder, tmp_path / "damaged")
        data = (folder / "recipe.toml").read_bytes()  # of all its files the one that is not here yet
        (folder / "recipe.toml").write_bytes(data[:-1] + b" ")
    elif kind == "hostile target":
        folder = altered(folder, tmp_path / "other", target="h100")
    elif kind == "nonsense":
        shutil.copytree(folder, tmp_path / "broken")
        (tmp_path / "broken" / "model.onnx").write_bytes(b"no graph")
        folder = altered(tmp_path / "broken", tmp_path / "nonsense")
    elif kind == "no room":
        folder = bundle("int8")
        monkeypatch.setattr(machine, "memory", lambda: (1 << 30, 1 << 20))
    words = {
        "twice": "is what is active here already",
        "older": "is older",
        "unsigned": "is not signed",
        "damaged": "is not the file that the manifest lists",
        "hostile target": "is for h100",
        "nonsense": "The engine fails on this device",
        "no room": "The bundle needs .* of memory",
    }
    with pytest.raises(ErnieExportError, match=words[kind]):
        install(offer(folder), place, policy)
    assert place.active() == before and [each.number for each in place.all()] == [1]
    assert contents(place.current / "bundle") == contents(bundle("int4"))


def test_what_a_disk_forgot_is_fetched_again(bundle: BuiltBundle, place: Place, tmp_path: Path) -> None:
    install(offer(bundle("int4")), place, ANYBODY)
    damaged = place.current / "bundle" / "weights" / "embedding.bin"
    assert damaged.stat().st_nlink == 2  # the blob, which the next version would have too
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert verify(place.current / "bundle")
    newer = altered(bundle("int4"), tmp_path / "newer", time="2999-01-01T00:00:00+00:00")
    install(offer(newer), place, ANYBODY)
    assert not verify(place.current / "bundle")


def service(tmp_path: Path, ready: str) -> Service:
    """Its restart is noted; it is ready where the Python expression on the active recipe says so."""
    log = tmp_path / "restarts"
    current = tmp_path / "device" / "current" / "bundle" / "recipe.toml"
    note = f"open({str(log)!r}, 'a').write(open({str(current)!r}).read().split('name')[1].split()[1] + ' ')"
    told = f"import sys; recipe = open({str(current)!r}).read(); sys.exit(0 if {ready} else 'not yet')"
    return Service(restart=[sys.executable, "-c", note], ready=[sys.executable, "-c", told], within=2)


def test_a_service_that_does_not_become_ready(bundle: BuiltBundle, place: Place, tmp_path: Path) -> None:
    told = service(tmp_path, "'int4' in recipe")
    install(offer(bundle("int4")), place, ANYBODY, told)
    with pytest.raises(WorkError, match=r"not ready after 2 s .*not yet.*generation 1 is active again"):
        install(offer(bundle("int8")), place, ANYBODY, told)
    assert (tmp_path / "restarts").read_text().split() == ['"int4"', '"int8"', '"int4"']
    active = place.active()
    assert active and active.number == 1
    assert "is not ready" in (place.refused(2) or "")
    installed = install(offer(bundle("int8")), place, ANYBODY, service(tmp_path, "True"))
    assert installed.number == 3 and place.active() == installed


@pytest.mark.parametrize("ill", ["never", "the new version", "both"])
def test_a_service_is_observed(
    bundle: BuiltBundle, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ill: str
) -> None:
    """It is ready at once with the new version, and then, after the third question, no more."""
    monkeypatch.setattr(module, "OBSERVED_EVERY", 0.05)
    install(offer(bundle("int4")), place, ANYBODY)
    asked, recipe = tmp_path / "asked", place.current / "bundle" / "recipe.toml"
    fine = {"never": "true", "the new version": f'grep -q int4 "{recipe}"', "both": "false"}[ill]
    ready = f'echo >> "{asked}"; [ $(wc -l < "{asked}") -le 3 ] || {fine} || {{ echo it leaks; exit 1; }}'
    told = Service(restart=["true"], ready=["sh", "-c", ready], within=1)
    if ill == "never":
        installed = install(offer(bundle("int8")), place, ANYBODY, told, observe=0.5)
        assert place.active() == installed and len(asked.read_text()) > 5
        return
    with pytest.raises(WorkError, match="did not stay ready: sh: it leaks; generation 1 is active") as failed:
        install(offer(bundle("int8")), place, ANYBODY, told, observe=60)
    assert ("not well either (The service is not ready" in failed.value.cause) == (ill == "both")
    active = place.active()
    assert active and active.number == 1
    assert place.refused(2) == "The service did not stay ready: sh: it leaks"


def test_what_nobody_can_observe(bundle: BuiltBundle, place: Place) -> None:
    with pytest.raises(UserError, match=r"there is no service\.toml"):
        install(offer(bundle("int4")), place, ANYBODY, observe=1)
    assert not place.root.exists()


def test_a_stranger_does_not_fill_the_disk(bundle: BuiltBundle, place: Place, tmp_path: Path) -> None:
    """Who signed is known before anything but the documents is fetched."""
    with pytest.raises(WorkError, match="is not signed"):
        install(offer(bundle("int4")), place, Policy())
    documents = {path.name for path in (place.root / "blobs").iterdir()}
    assert documents == {entry.sha256 for entry in offer(bundle("int4")).documents.values()}


def test_everybody_can_read_and_nobody_else_write(bundle: BuiltBundle, place: Place) -> None:
    before = os.umask(0o077)
    try:
        install(offer(bundle("int4")), place, ANYBODY)
    finally:
        assert os.umask(before) == 0o077
    for path in [place.root, *(place.current.resolve()).rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_a_service_that_cannot_be_restarted(bundle: BuiltBundle, place: Place) -> None:
    for command, words in ((["/no/such/program"], "No such file"), (["false"], "exit code 1")):
        with pytest.raises(WorkError, match=words):
            install(offer(bundle("int4")), place, ANYBODY, Service(restart=command, ready=["true"], within=1))
        assert place.active() is None


def test_what_a_service_said_before_the_time_was_over_is_told(tmp_path: Path) -> None:
    """And not that the last question, which the end of the time cut short, had no answer."""
    asked = tmp_path / "asked"
    once = f'[ -e "{asked}" ] && exec sleep 9; touch "{asked}"; echo no model >&2; exit 1'
    with pytest.raises(WorkError, match=r"not ready after 1 s .*no model"):
        Service(restart=["true"], ready=["sh", "-c", once], within=1).start_anew()
    with pytest.raises(WorkError, match=r"not ready after 1 s .*sleep hangs"):
        Service(restart=["true"], ready=["sleep", "9"], within=1).start_anew()


@pytest.mark.parametrize("text", ["[", "restart = []\nready = ['x']", "restart = ['x']", "\udcff"])
def test_a_wrong_service_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "service.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"service\.toml"):
        Service.read(tmp_path / "service.toml")


def test_the_commands(bundle: BuiltBundle, tmp_path: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ernie_export", "device", *map(str, words)]
        environment = {**os.environ, "ERNIE_EXPORT_ROOT": str(tmp_path / "root")}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    assert "nothing is installed" in run("status").stdout
    refused = run("install", bundle("int4"))
    assert refused.returncode == 2 and "There is no policy" in refused.stderr
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root" / "policy.toml").write_text("unsigned = true\ndowngrade = true\n")
    ran = run("install", bundle("int4"))
    assert ran.returncode == 0 and "generation 1" in ran.stdout, ran.stderr
    assert run("install", bundle("int8")).returncode == 0
    found = json.loads(run("status", "--json").stdout)
    assert found["active"] == 2 and [each["recipe"] for each in found["generations"]] == ["int4", "int8"]
    assert "generation 1" in run("rollback").stdout
    assert "freed" in run("gc").stdout
    assert "int4" in run("status").stdout
    nobody = run("rollback")
    assert nobody.returncode == 2 and "no generation before" in nobody.stderr
