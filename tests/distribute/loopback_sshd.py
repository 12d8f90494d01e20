"""Devices on loopback: a real sshd each, on a port of its own, with a home, a store and a program of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ernie_export.device.place import Place

SOURCES = Path(__file__).parents[2]
PRIVILEGE_SEPARATION = Path("/run/sshd")
"""sshd wants it where root starts it."""


@dataclass
class Device:
    name: str
    """As the configuration of ssh calls it."""
    folder: Path
    port: int
    fleet: Fleet = field(repr=False)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def place(self) -> Place:
        return Place(self.root)

    @property
    def program(self) -> Path:
        return self.folder / "bin" / "ernie-export"

    def run_instead(self, script: str) -> None:
        """What runs there as ernie-export; in the shell script, $REAL is the real one."""
        self.program.parent.mkdir(exist_ok=True)
        real = f'"{sys.executable}" -m ernie_export'
        self.program.write_text("#!/bin/sh\n" + script.replace("$REAL", real) + "\n")
        self.program.chmod(0o755)

    def policy(self, text: str = "unsigned = true\ndowngrade = true\n") -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / "policy.toml").write_text(text)

    def service(self, ready: str, within: float = 5) -> None:
        """A service without a process: it is ready where the shell command `ready` is true."""
        self.root.mkdir(exist_ok=True)
        command = f'cd "{self.root}/current/bundle" && {ready}'
        (self.root / "service.toml").write_text(
            f"restart = ['true']\nready = ['sh', '-c', '''{command}''']\nwithin = {within}\n"
        )


@dataclass
class Fleet:
    folder: Path
    devices: list[Device] = field(default_factory=list)

    @property
    def config(self) -> Path:
        """A configuration of ssh, which knows the devices by their names."""
        return self.folder / "ssh_config"

    def to(self, *devices: Device) -> list[str]:
        """Arguments of `deploy`: all of them, or these."""
        named = [word for device in devices or self.devices for word in ("--to", device.name)]
        return [*named, "--ssh-config", str(self.config)]

    def write_config(self, **options: str) -> None:
        """`options`: of each host, in place of the usual ones."""
        lines = []
        for device in self.devices:
            usual = {
                "HostName": "127.0.0.1",
                "Port": str(device.port),
                "IdentityFile": f'"{self.folder / "user_key"}"',
                "IdentitiesOnly": "yes",
                "UserKnownHostsFile": f'"{self.folder / "known_hosts"}"',
                "GlobalKnownHostsFile": "/dev/null",
                "HostKeyAlias": device.name,
            }
            lines += [
                f"Host {device.name}",
                *(f"  {name} {value}" for name, value in (usual | options).items()),
            ]
        self.config.write_text("\n".join(lines) + "\n")


def sshd() -> str | None:
    return shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")


@contextmanager
def devices(folder: Path, count: int) -> Iterator[Fleet]:
    """That many devices, gone when the block ends; the test is skipped where there is no sshd."""
    program = sshd()
    if program is None or shutil.which("ssh") is None:
        pytest.skip("sshd is not here: run `make system-deps`")
    if os.geteuid() == 0:
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    fleet = Fleet(folder)
    _make_key(folder / "user_key")
    _make_key(folder / "host_key")
    with ExitStack() as running:
        for number in range(1, count + 1):
            fleet.devices.append(running.enter_context(_device(fleet, f"device-{number}", program)))
        key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text("".join(f"{each.name} {key}\n" for each in fleet.devices))
        fleet.write_config()
        yield fleet


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


@contextmanager
def _device(fleet: Fleet, name: str, program: str) -> Iterator[Device]:
    folder = fleet.folder / name
    (folder / "home").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        device = Device(name, folder, free.getsockname()[1], fleet)
    device.run_instead('exec $REAL "$@"')
    device.policy()
    keys = folder / "authorized_keys"
    shutil.copyfile(fleet.folder / "user_key.pub", keys)
    (folder / "sshd_config").write_text(_config(fleet, device, keys))
    with (folder / "sshd.log").open("ab") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
        try:
            _await(device, process)
            yield device
        finally:
            process.terminate()
            process.wait(10)


def _config(fleet: Fleet, device: Device, keys: Path) -> str:
    # It has no other program than its own, whatever the environment of who tests holds.
    path = [folder for folder in os.environ["PATH"].split(":") if not Path(folder, "ernie-export").exists()]
    environment = {
        "HOME": device.folder / "home",
        "PATH": ":".join([str(device.folder / "bin"), *path]),
        "PYTHONPATH": SOURCES,
        "ERNIE_EXPORT_ROOT": device.root,
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return f"""\
ListenAddress 127.0.0.1
Port {device.port}
HostKey {fleet.folder / "host_key"}
AuthorizedKeysFile {keys}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
SetEnv {" ".join(f'"{name}={value}"' for name, value in environment.items())}
"""


def _await(device: Device, process: subprocess.Popen[bytes]) -> None:
    """Until it answers with SSH's first words."""
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", device.port), timeout=1) as there:
                if there.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"sshd did not start: {(device.folder / 'sshd.log').read_text()}")
