"""The systemd unit, as systemd itself reads it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.device.place import Pending
from ernie_export.device.service import Service
from ernie_export.device.unit import write
from ernie_export.errors import UserError


def made(folder: Path, root: str = "device", program: str = "/bin/sleep 5", **more: bool) -> Path:
    unit = folder / "ernie.service"
    write(unit, folder / root, program, "curl --fail 'http://localhost:8000/a b'", 60, **more)
    return unit


@pytest.mark.parametrize("root", ["device", "a device", "100% device"])
def test_systemd_takes_it(tmp_path: Path, root: str) -> None:
    unit = made(tmp_path, root)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: run `make system-deps`")
    both = [str(unit), str(tmp_path / "ernie-settle.service")]
    ran = subprocess.run(["systemd-analyze", "verify", *both], capture_output=True, text=True)
    assert ran.returncode == 0 and "ernie" not in ran.stderr, ran.stderr
    unit.write_text(unit.read_text().replace("Type=exec", "Type=always"))
    wrong = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert "always" in wrong.stderr


def test_what_the_device_reads_of_it(tmp_path: Path) -> None:
    unit = made(tmp_path)
    told = Service.read(tmp_path / "device" / "service.toml")
    assert told.restart == ["systemctl", "restart", "ernie.service"] and told.within == 60
    assert told.ready == ["curl", "--fail", "http://localhost:8000/a b"]
    assert f"ConditionPathIsSymbolicLink={tmp_path}/device/current\n" in unit.read_text()
    assert f'"ERNIE_EXPORT_BUNDLE={tmp_path}/device/current/bundle"' in unit.read_text()


def test_what_was_cut_off_is_settled_at_the_start(tmp_path: Path) -> None:
    """By the very program that wrote the unit, behind the service."""
    made(tmp_path)
    lines = (tmp_path / "ernie-settle.service").read_text().splitlines()
    assert "After=ernie.service" in lines and f"ConditionPathExists={tmp_path}/device/{Pending.FILE}" in lines
    (command,) = (line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart="))
    ran = subprocess.run(shlex.split(command), capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "") and "nothing is installed" in ran.stdout


def test_what_stands_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    unit = made(tmp_path)
    made(tmp_path)  # the same again
    with pytest.raises(UserError, match="says something else"):
        made(tmp_path, program="/bin/true")
    made(tmp_path, program="/bin/true", replace=True)
    assert "ExecStart=/bin/true\n" in unit.read_text()


@pytest.mark.parametrize(
    ("name", "program", "ready", "words"),
    [
        ("ernie.service", "server", "true", "cannot be started"),
        ("ernie.service", "/bin/a\nUser=root", "true", "cannot be started"),
        ("ernie.conf", "/bin/a", "true", "is no name of a service"),
        ("ernie.service", "/bin/a", "'", "is no command"),
        ("ernie.service", "/bin/a", " ", "is empty"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, program: str, ready: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        write(tmp_path / name, tmp_path, program, ready, 60)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path) -> None:
    unit = tmp_path / "ernie.service"
    command = [sys.executable, "-m", "ernie_export", "device", "unit", "/bin/sleep 5", "--ready", "true",
               "--root", str(tmp_path / "device"), "--unit", str(unit)]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and "enable --now ernie.service ernie-settle.service" in ran.stdout
    assert unit.is_file() and Service.read(tmp_path / "device" / "service.toml").within == 120
