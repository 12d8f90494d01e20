"""Real bundles over real ssh, to devices on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ernie_export import lock
from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.device.install import Offer, install
from ernie_export.distribute.policy import Policy
from ernie_export.distribute.ssh_destination import destinations
from ernie_export.distribute.ssh_messages import Step
from ernie_export.distribute.ssh_rollout import Deployed, HostResult, Rollout, Way
from ernie_export.distribute.ssh_sender import Parcel
from ernie_export.errors import WorkError
from tests.conftest import BuiltBundle
from tests.distribute.cutting_proxy import cutting
from tests.distribute.loopback_sshd import Device, Fleet, devices
from tests.distribute.test_transfer import contents, next_version, travels


class Log:
    """Implements `ssh_rollout.Watch`."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def connecting(self, host: str) -> None:
        self.said.append(f"{host} connecting")

    def step(self, host: str, step: Step) -> None:
        self.said.append(f"{host} {step.title} {step.done:.0f}/{step.total or 0:.0f}")

    def ended(self, result: HostResult) -> None:
        self.said.append(f"{result.host} {result.outcome}")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with devices(tmp_path / "fleet", 3) as running:
        yield running


def deploy(
    fleet: Fleet,
    bundle: Path,
    hosts: Sequence[Device | str] = (),
    canaries: int = 0,
    log: Log | None = None,
    observe: float = 0,
) -> list[HostResult]:
    return rollout(fleet, bundle, hosts, log).run(canaries, observe=observe).hosts


def rollout(
    fleet: Fleet, bundle: Path, hosts: Sequence[Device | str] = (), log: Log | None = None
) -> Rollout:
    names = [host if isinstance(host, str) else host.name for host in hosts or fleet.devices]
    return Rollout(Parcel.of(bundle), destinations(names), Way(ssh_config=fleet.config), log or Log())


def installed_before(device: Device, bundle: Path) -> None:
    install(Offer.find(str(bundle)), device.place, Policy(unsigned=True))


def outcomes(results: Sequence[HostResult]) -> list[tuple[str, int | None]]:
    return [(result.outcome, result.generation) for result in results]


def test_only_what_changed_travels(bundle: BuiltBundle, fleet: Fleet, tmp_path: Path) -> None:
    first, second = fleet.devices[:2]
    first.service("cat; echo noise; echo noise >&2")  # neither what it reads nor what it says meets our line
    built, log = bundle("int4"), Log()
    parcel = Parcel.of(built)
    results = deploy(fleet, built, (first, second), log=log)
    assert outcomes(results) == [("installed", 1)] * 2, results
    for device, result in zip((first, second), results, strict=True):
        assert contents(device.place.current / "bundle") == contents(built)
        assert parcel.size < result.sent < parcel.size + 2000
        active = device.place.active()
        assert active and active.source.endswith(f":{built}")
    listed = sum(entry.size for path, entry in parcel.files.items() if path not in UNLISTED)
    for word in ("connecting", f"Fetch {listed}/{listed}", "Switch 0/0", "installed"):
        assert f"{first.name} {word}" in log.said
    assert outcomes(deploy(fleet, built, (first, second))) == [("already active", 1)] * 2

    changed = max(path for path in parcel.files if path.startswith("weights/"))
    newer = next_version(built, tmp_path / "newer", changed)
    least = travels(built, newer)
    for result in deploy(fleet, newer, (first, second)):
        assert (result.outcome, result.generation) == ("installed", 2)
        assert least < result.sent < least + 2000
    assert contents(second.place.current / "bundle") == contents(newer)


def test_what_was_damaged_there_travels_again(bundle: BuiltBundle, fleet: Fleet) -> None:
    device = fleet.devices[0]
    installed_before(device, bundle("int4"))
    damaged = device.place.current / "bundle" / "weights" / "embedding.bin"
    nbytes = damaged.stat().st_size
    damaged.write_bytes(bytes(nbytes))
    (result,) = deploy(fleet, bundle("int4"), [device])
    assert (result.outcome, result.generation) == ("installed", 2)
    assert nbytes < result.sent < nbytes + 4000
    assert not verify(device.place.current / "bundle")


def test_one_that_fails_changes_nothing_for_the_others(bundle: BuiltBundle, fleet: Fleet) -> None:
    ill, bare, _ = fleet.devices
    installed_before(ill, bundle("int8"))
    ill.service("""grep -q 'name = "int8"' recipe.toml""", within=1)
    bare.program.unlink()
    results = deploy(fleet, bundle("int4"))
    assert outcomes(results) == [("failed", 1), ("failed", None), ("installed", 1)]
    assert "is not ready after 1 s" in str(results[0].cause)
    assert "generation 1 is active again" in str(results[0].cause)
    assert "There is no ernie-export" in str(results[1].cause) and "pip install" in str(results[1].remedy)
    active = ill.place.active()
    assert active and active.recipe == "int8"


def test_canaries_come_first(bundle: BuiltBundle, fleet: Fleet) -> None:
    canary, *others = fleet.devices
    canary.service("false", within=0.5)
    log = Log()
    results = deploy(fleet, bundle("int4"), canaries=1, log=log)
    assert [result.canary for result in results] == [True, False, False]
    assert outcomes(results) == [("failed", None)] + [("left out", None)] * 2
    assert results[1].cause == f"The canary {canary.name} is not well"
    assert not any(each.place.generations.exists() for each in others)
    assert not any("connecting" in said for said in log.said if not said.startswith(canary.name))

    canary.service("true")
    log = Log()
    assert [result.outcome for result in deploy(fleet, bundle("int4"), canaries=1, log=log)] == [
        "installed"
    ] * 3
    assert log.said.index(f"{canary.name} installed") < log.said.index(f"{others[0].name} connecting")


def test_a_canary_is_observed(bundle: BuiltBundle, fleet: Fleet) -> None:
    canary, other, _ = fleet.devices
    installed_before(canary, bundle("int8"))
    # Ready at once with the new version, and then, after the second question, no more.
    questions = "$(wc -l < ../../../asked)"
    canary.service(
        f"""grep -q 'name = "int8"' recipe.toml || {{ echo >> ../../../asked; [ {questions} -le 2 ]; }}"""
    )
    results = deploy(fleet, bundle("int4"), (canary, other), canaries=1, observe=60)
    assert outcomes(results) == [("failed", 1), ("left out", None)]
    assert "did not stay ready" in str(results[0].cause)
    assert "generation 1 is active again" in str(results[0].cause)

    log = Log()
    canary.service("true")
    other.service("true")
    results = deploy(fleet, bundle("int4"), (canary, other), canaries=1, log=log, observe=0.5)
    assert [result.outcome for result in results] == ["installed"] * 2
    assert f"{canary.name} Observe 0/0" in log.said  # of half a second
    assert not any(said.startswith(f"{other.name} Observe") for said in log.said)

    # What runs already is observed too, and stays, ill as it may be.
    canary.service("echo out of memory; false")
    results = deploy(fleet, bundle("int4"), (canary, other), canaries=1, observe=60)
    assert outcomes(results) == [("failed", 3), ("left out", None)]
    assert "did not stay ready: sh: out of memory" in str(results[0].cause)


def test_a_canary_that_cannot_observe(bundle: BuiltBundle, fleet: Fleet) -> None:
    old, without, _ = fleet.devices
    old.service("true")
    # A version from before `observe` neither knows the word nor says it.
    old.run_instead('$REAL "$@" | sed -u \'s/,"observed":[0-9.]*//\'')
    results = deploy(fleet, bundle("int4"), (old, without), canaries=1, observe=0.1)
    assert outcomes(results) == [("failed", 1), ("left out", None)]
    assert "too old to observe" in str(results[0].cause)
    results = deploy(fleet, bundle("int4"), (without, old), canaries=1, observe=0.1)
    assert "there is no service.toml" in str(results[0].cause) and without.place.active() is None


def test_a_cut_connection_goes_on_where_it_stopped(bundle: BuiltBundle, fleet: Fleet) -> None:
    device, parcel = fleet.devices[0], Parcel.of(bundle("int4"))
    with cutting(device.port, after=parcel.size // 2, times=1) as (port, cuts):
        fleet.write_config(Port=str(port))
        (cut,) = deploy(fleet, bundle("int4"), [device])
        assert cut.outcome == "failed" and len(cuts) == 1
        assert "The connection was cut" in str(cut.cause) and "Deploy again" in str(cut.remedy), cut
        assert device.place.active() is None
        kept = left(device)
        assert 0 < kept < parcel.size
        (result,) = deploy(fleet, bundle("int4"), [device])
    assert result.outcome == "installed"
    assert parcel.size - kept < result.sent < parcel.size - kept + 2000
    assert not verify(device.place.current / "bundle")


def left(device: Device) -> int:
    """The bytes that a receiver left, once it has noticed that nobody sends, and has let go of its place."""
    until = time.monotonic() + 20
    while True:
        try:
            with lock.held(device.root):
                return sum(path.stat().st_size for path in (device.root / "blobs").iterdir())
        except WorkError:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_full_disk_there(bundle: BuiltBundle, fleet: Fleet) -> None:
    device = fleet.devices[0]
    device.run_instead(
        'exec unshare --mount --map-root-user sh -c \'mount -t tmpfs -o size=4m tmpfs "$ERNIE_EXPORT_ROOT" && '
        'echo "unsigned = true" > "$ERNIE_EXPORT_ROOT/policy.toml" && exec $REAL "$@"\' sh "$@"'
    )
    (result,) = deploy(fleet, bundle("int4"), [device])
    assert result.outcome == "failed" and "has 4" in str(result.cause), result
    assert "needs 6." in str(result.cause) and "Make room" in str(result.remedy)


def test_what_ssh_refuses(bundle: BuiltBundle, fleet: Fleet, tmp_path: Path) -> None:
    _, impostor, closed = fleet.devices
    (closed.folder / "authorized_keys").write_text("")
    known = (fleet.folder / "known_hosts").read_text().splitlines()
    other = " ".join((fleet.folder / "user_key.pub").read_text().split()[:2])
    (fleet.folder / "known_hosts").write_text("\n".join([f"{impostor.name} {other}", known[2], ""]))
    results = deploy(fleet, bundle("int4"), [*fleet.devices, "nowhere.invalid", "127.0.0.1:1"])
    told = [str(result.cause) for result in results]
    assert told[0] == "Its host key is not known here"
    assert told[1] == "The host key is not the one that is known: this may be another machine"
    assert told[2] == "It refuses the login (publickey)"
    assert told[3] == "There is no host of this name"
    assert told[4].startswith("It does not answer (Connection refused")
    assert all(result.remedy and result.sent == 0 for result in results)
    assert not any(device.place.generations.exists() for device in fleet.devices)


def test_what_may_run_there_instead(bundle: BuiltBundle, fleet: Fleet) -> None:
    old, killed, chatty = fleet.devices
    old.run_instead("echo \"error: No such command 'receive'. See …\" >&2; exit 2")
    killed.run_instead('( sleep 0.2; kill -9 $$ ) & exec $REAL "$@" > /dev/null')
    for rc in (".bashrc", ".profile", ".zshenv"):
        (chatty.folder / "home" / rc).write_text("echo Welcome\n")
    chatty.run_instead('echo "Two lines"; echo "of greeting"; exec $REAL "$@"')
    results = deploy(fleet, bundle("int4"))
    assert results[0].cause == "The ernie-export there is too old to receive"
    assert results[1].outcome == "failed"
    assert results[2].outcome == "installed"


def test_its_own_policy_holds(bundle: BuiltBundle, fleet: Fleet) -> None:
    strict, without = fleet.devices[:2]
    strict.policy("[[signers]]\nname = 'us'\npublic_key = 'us.pem'\n")
    (strict.root / "us.pem").write_text("")
    (without.root / "policy.toml").unlink()
    results = deploy(fleet, bundle("int4"), (strict, without))
    assert "is not signed" in str(results[0].cause)
    assert "There is no policy" in str(results[1].cause)
    assert strict.place.active() is None is without.place.active()


def test_a_login_that_may_do_nothing_else(bundle: BuiltBundle, fleet: Fleet) -> None:
    device = fleet.devices[0]
    keys = device.folder / "authorized_keys"
    keys.write_text(f'restrict,command="{device.program} device receive" {keys.read_text()}')
    (result,) = deploy(fleet, bundle("int4"), [device])
    assert outcomes([result]) == [("installed", 1)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("one byte", "did not arrive as the manifest lists it"),
        ("shorter", "changed while the bundle travelled"),
    ],
)
def test_a_bundle_that_changes_on_the_way(
    bundle: BuiltBundle, fleet: Fleet, tmp_path: Path, change: str, words: str
) -> None:
    device = fleet.devices[0]
    device.run_instead('touch "$HOME/here"; until [ -e "$HOME/go" ]; do sleep 0.05; done; exec $REAL "$@"')
    changed = next_version(bundle("int4"), tmp_path / "changed", "model.onnx")
    results: list[HostResult] = []
    thread = threading.Thread(target=lambda: results.extend(deploy(fleet, changed, [device])))
    thread.start()
    while not (device.folder / "home" / "here").exists():
        time.sleep(0.05)
    data = (changed / "model.onnx").read_bytes()
    (changed / "model.onnx").write_bytes(data[:-1] + (b"" if change == "shorter" else b"?"))
    (device.folder / "home" / "go").touch()
    thread.join()
    assert words in str(results[0].cause) and "model.onnx" in str(results[0].cause)
    assert device.place.active() is None


def test_a_roll_out_that_is_ended_by_hand(bundle: BuiltBundle, fleet: Fleet) -> None:
    """All connections end, and so do the programs over there."""
    for device in fleet.devices:
        device.run_instead('echo $$ > "$HOME/pid"; exec $REAL "$@"')

    class Impatient(Log):
        def step(self, host: str, step: Step) -> None:
            stopping._stop()

    stopping = rollout(fleet, bundle("int4"), log=Impatient())
    results = stopping.run(at_once=2).hosts
    assert [result.outcome for result in results] == ["failed"] * 3
    assert results[2].cause == "It was not begun"
    for device in fleet.devices[:2]:
        pid = int((device.folder / "home" / "pid").read_text())
        until = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        assert device.place.active() is None


def test_what_json_says(bundle: BuiltBundle, fleet: Fleet) -> None:
    deployed = rollout(fleet, bundle("int4"), ["nowhere.invalid"]).run()
    assert Deployed.model_validate_json(deployed.model_dump_json()) == deployed
    assert deployed.failed == deployed.hosts
    assert deployed.size == sum(entry.size for entry in Parcel.of(bundle("int4")).files.values())
    assert Manifest.FILE in Parcel.of(bundle("int4")).files
