"""docker/install.sh on a bare Debian, and what it answers to a mistake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BuiltBundle

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docker" / "install.sh"
BARE = ROOT / "build" / "debian"
EXTRAS = "run,distribute"


class Machine:
    """A bare Debian of its own: commands see nothing of this machine but its kernel and its network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        subprocess.run(["cp", "--archive", "--reflink=auto", f"{BARE}/.", str(root)], check=True)

    def run(self, *command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        inside = f'mount -t proc proc "{self.root}/proc" && exec chroot --userspec={user} "{self.root}" "$@"'
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
        }
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "sh", "-c", inside, "sh", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def output(self, *command: str, user: str = "root") -> str:
        ran = self.run(*command, user=user)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if os.geteuid() != 0 or not BARE.exists():
        pytest.skip("a bare Debian needs root and build/debian: run `make system-deps` as root")
    machine = Machine(tmp_path / "machine")
    (machine.root / "source" / "docker").mkdir(parents=True)
    shutil.copy(SCRIPT, machine.root / "source" / "docker")
    shutil.copy(ROOT / "constraints.txt", machine.root / "source")
    return machine


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], cwd=ROOT, check=True, capture_output=True)


def packages(folder: Path) -> str:
    """Our wheel in folder/wheel and all that it needs in folder/wheels → the wheel's name."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "wheel"), ".")
    (wheel,) = (folder / "wheel").iterdir()
    constraints = ["--constraint", "constraints.txt"]
    pip("download", "--dest", str(folder / "wheels"), *constraints, f"{wheel}[{EXTRAS}]")
    return wheel.name


@pytest.mark.timeout(600)
def test_a_bare_machine_runs_a_bundle(machine: Machine, bundle: BuiltBundle) -> None:
    """Installed without a network but Debian's, a user who is not root runs and installs a bundle there."""
    wheel = packages(machine.root)
    shutil.copytree(bundle("int4"), machine.root / "bundle")
    install = ["/source/docker/install.sh", "--wheels", "/wheels", f"/wheel/{wheel}"]
    said = machine.output(*install)
    assert said.splitlines()[-1].endswith(", as /usr/local/bin/ernie-export")
    assert "debian" in machine.output("cat", "/etc/os-release") and "torch" not in machine.output(
        "/opt/ernie-export/current/bin/python", "-m", "pip", "list"
    )

    nobody = "65534:65534"
    assert "ernie-export" in machine.output("ernie-export", "--version", user=nobody)
    machine.output("ernie-export", "verify", "/bundle", user=nobody)
    said = machine.output(
        "ernie-export", "generate", "/bundle", "--prompt", "The list is", "--max-tokens", "4"
    )
    assert said.strip()
    (machine.root / "policy.toml").write_text("unsigned = true\n")
    machine.output("ernie-export", "device", "install", "/bundle", "--policy", "/policy.toml")
    assert "\n1 *" in machine.output("ernie-export", "device", "status")

    # A second installation that fails leaves the first; one that does not takes its place.
    place = machine.root / "opt" / "ernie-export"
    (first,) = place.glob("version-*")
    broken = machine.run(*install[:2], "/source", f"/wheel/{wheel}")
    assert broken.returncode == 1 and "could not be installed" in broken.stderr
    assert list(place.glob("version-*")) == [first]
    machine.output("ernie-export", "--version")
    machine.output(*install)
    assert not first.exists() and len(list(place.iterdir())) == 2
    machine.output("ernie-export", "--version")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "which PACKAGE? Give a wheel of ernie-export or a clone of it. See install.sh --help."),
        (["--fro", "run", "."], "there is no option --fro. See install.sh --help."),
        (["--for"], "--for needs a value. See install.sh --help."),
        (["one.whl", "two.whl"], "one PACKAGE at a time: one.whl or two.whl."),
        (["gone.whl"], "gone.whl is not there. Give a wheel of ernie-export or a clone of it."),
        (["--wheels", "gone", "."], "gone is no folder. --wheels names one with the packages' files."),
        (["--constraints", "gone", "."], "gone is not there. --constraints names a file."),
        (
            ["--command", "mine", "."],
            "mine is no link of ours. Move it away, or name another with --command.",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_done(tmp_path: Path, arguments: list[str], answer: str) -> None:
    (tmp_path / "mine").write_text("something else")
    command = [str(SCRIPT), "--at", str(tmp_path / "at"), *arguments]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, f"install.sh: {answer}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_what_is_no_package_leaves_nothing(tmp_path: Path) -> None:
    """pip's own words stand above ours, and the folder is empty again."""
    (tmp_path / "notes.whl").write_text("no wheel")
    command = [str(SCRIPT), "--at", str(tmp_path / "at"), "--command", str(tmp_path / "command"), "notes.whl"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(
        "install.sh: notes.whl could not be installed: pip says why"
    )
    assert list((tmp_path / "at").iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [
        str(SCRIPT),
        "--at",
        str(tmp_path / "file" / "at"),
        "--command",
        str(tmp_path / "command"),
        ".",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "cannot be written. Run it as root, or name another folder with --at." in ran.stderr
