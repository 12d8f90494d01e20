"""Whenever the power goes, the old generation or the new one is active, and whole."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.bundle.write import seal
from ernie_export.device.place import Place
from ernie_export.errors import ErnieExportError
from ernie_export.validate.report import Report
from tests.device.recorder import Moment, Node

SOME = range(1, 400, 9)
"""Operations before which the quick test kills; the slow one takes each."""


def run(root: Path, bundle: Path, *how: object) -> int:
    command = [sys.executable, "-m", "tests.device.recorder", str(root), str(bundle), *map(str, how)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2]).returncode


@pytest.fixture
def root(versions: tuple[Path, Path], tmp_path: Path) -> Path:
    """A device on which the first version is active."""
    root = tmp_path / "root"
    root.mkdir()
    assert run(root, versions[0], "kill", 0) == 0
    return root


def require_sound(root: Path, versions: tuple[Path, Path], when: str) -> None:
    """One of the two is active and whole; installing the second then works, and leaves nothing over."""
    active = Place(root).active()
    assert active and active.number in (1, 2), when
    assert not verify(root / "current" / "bundle"), when
    expected = versions[active.number - 1]
    assert (root / "current" / "bundle" / "recipe.toml").read_bytes() == (
        expected / "recipe.toml"
    ).read_bytes()
    ended = run(root, versions[1], "kill", 0)
    assert ended == (0 if active.number == 1 else 1), when  # 1: it is active here already
    assert (root / "current" / "bundle" / "recipe.toml").read_bytes() == (
        versions[1] / "recipe.toml"
    ).read_bytes()
    assert not verify(root / "current" / "bundle"), when
    assert Place(root).pending() is None, when
    left = [path.name for path in (*root.iterdir(), *(root / "generations").iterdir()) if path.name[0] == "."]
    assert left == [".lock"], when


def killed_at(number: int, root: Path, versions: tuple[Path, Path], tmp_path: Path) -> bool:
    """Kill before one operation and look; False where there are not so many."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(root), str(copy)], check=True)
    ended = run(copy, versions[1], "kill", number)
    if ended == 0:
        shutil.rmtree(copy)
        return False
    assert ended == -signal.SIGKILL
    require_sound(copy, versions, f"killed before operation {number}")
    shutil.rmtree(copy)
    return True


def test_killed_at_some_operations(root: Path, versions: tuple[Path, Path], tmp_path: Path) -> None:
    assert all(killed_at(number, root, versions, tmp_path) for number in SOME[:3])
    for number in SOME[3:]:
        if not killed_at(number, root, versions, tmp_path):
            return
    raise AssertionError("there are more operations than were thought")


@pytest.mark.slow
@pytest.mark.parametrize("service", [False, True])
def test_killed_at_every_operation(
    root: Path, versions: tuple[Path, Path], tmp_path: Path, service: bool
) -> None:
    if service:
        with_service(root)
    number = 1
    while killed_at(number, root, versions, tmp_path):
        number += 1
    assert number > (50 if service else 40)


def with_service(root: Path) -> None:
    """It is ready at once; that it was asked is seen."""
    asked = 'echo >> "$(dirname "$0")/asked"'  # beside this very script, whatever copy of the device it is in
    (root / "ready").write_text(f"#!/bin/sh\n{asked}\n")
    (root / "ready").chmod(0o755)
    (root / "service.toml").write_text(f"restart = ['true']\nready = ['{root}/ready']\n")


def unproved(moment: Moment, state: Path) -> bool:
    """The new version is active, and its service was not asked yet: then it is known that it is still to be asked."""
    place = Place(state)
    if place.active_number() != 2 or "asked" in moment.tree.entries:
        return False
    assert (pending := place.pending()) and (pending.number, pending.before) == (2, 1), moment.operation
    return True


@pytest.mark.parametrize("without", ["", "write file"])
def test_a_switch_that_nobody_proved_is_known(
    root: Path, versions: tuple[Path, Path], tmp_path: Path, without: str
) -> None:
    """Whatever a loss of power takes; without the sync of that record it would not be."""
    with_service(root)
    assert run(root, versions[1], "record", tmp_path / "moments", without) == 0
    broken, seen = [], 0
    for number, moment in enumerate(pickle.loads((tmp_path / "moments").read_bytes())):
        for synced in (False, True):
            state = tmp_path / f"state{number}{synced}"
            build(moment.tree, state, moment, synced, {})
            try:
                seen += unproved(moment, state)
            except (AssertionError, ErnieExportError):
                broken.append(moment.operation)
            shutil.rmtree(state)
    assert bool(broken) == bool(without) and (seen or without)


@pytest.fixture
def with_kit(versions: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The second version is a kit, whose engine is built on the device."""
    kit = tmp_path / "kit"
    shutil.copytree(versions[1], kit)
    report, claims = Report.read(kit / Report.FILE), Manifest.read(kit).claims
    info = {"runtime": "onnxruntime-cpu", "max_context": 512, "requires": {"module": "onnxruntime"}}
    plan = {"memory": [{"context": 512, "bytes": 1}], "disk": 1}
    for name, content in (("engine.json", info), ("kit.json", plan)):
        (kit / name).write_text(json.dumps(content))
    for name in (Manifest.FILE, Report.FILE):
        (kit / name).unlink()
    seal(kit, report, claims)
    return versions[0], kit


def test_killed_while_a_kit_is_built(root: Path, with_kit: tuple[Path, Path], tmp_path: Path) -> None:
    number = 1
    while killed_at(number, root, with_kit, tmp_path):
        number += 29
    assert number > 80


def test_what_a_kit_became_is_synced(root: Path, with_kit: tuple[Path, Path], tmp_path: Path) -> None:
    assert run(root, with_kit[1], "record", tmp_path / "moments") == 0
    seen = set()
    for number, moment in enumerate(pickle.loads((tmp_path / "moments").read_bytes())):
        for synced in (False, True):
            state = tmp_path / f"state{number}{synced}"
            build(moment.tree, state, moment, synced, {})
            seen.add(active_and_whole(state, moment))
            shutil.rmtree(state)
    assert seen == {1, 2}


def build(node: Node, place: Path, moment: Moment, synced: bool, made: dict[int, Path]) -> None:
    """A tree as a loss of power leaves it: of files what was synced, of names all or those that were synced."""
    if node.kind == "link":
        os.symlink(node.target, place)
    elif node.kind == "file":
        if node.inode in made:
            os.link(made[node.inode], place)
        else:
            place.write_bytes(moment.contents.get(node.inode, b""))
            made[node.inode] = place
    else:
        place.mkdir()
        entries = moment.folders.get(node.inode, {}) if synced else node.entries
        for name, entry in entries.items():
            build(entry, place / name, moment, synced, made)


@pytest.mark.parametrize("names", ["all names", "synced names"])
def test_what_was_never_synced_is_lost(
    root: Path, versions: tuple[Path, Path], tmp_path: Path, names: str
) -> None:
    assert run(root, versions[1], "record", tmp_path / "moments") == 0
    moments = pickle.loads((tmp_path / "moments").read_bytes())
    assert len(moments) > 40
    seen: set[int] = set()
    for number, moment in enumerate(moments):
        state = tmp_path / f"state{number}"
        build(moment.tree, state, moment, names == "synced names", {})
        seen.add(active_and_whole(state, moment))
        if number % 12 == 0 or number == len(moments) - 1:
            require_sound(state, versions, moment.operation)
        shutil.rmtree(state)
    assert seen == {1, 2}


def active_and_whole(state: Path, moment: Moment) -> int:
    """The generation that is active in a state that a loss of power left; once all is done, the new one."""
    active = Place(state).active()
    assert active and active.number in (1, 2), moment.operation
    assert not verify(state / "current" / "bundle"), moment.operation
    assert active.number == 2 or moment.operation != "the end"
    return active.number


def listed(root: Path, bundle: Path, tmp_path: Path, *before: str) -> tuple[list[str], str]:
    """The operations of an installation in the recorder's words; and what the command before it wrote, if any."""
    told, traced = tmp_path / "listed", tmp_path / "traced"
    before = tuple(word.replace("TRACED", str(traced)) for word in before)
    command = [
        *before,
        sys.executable,
        "-m",
        "tests.device.recorder",
        str(root),
        str(bundle),
        "list",
        str(told),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    return told.read_text().splitlines(), traced.read_text() if before else ""


STATE = (
    "open,openat,creat,write,pwrite64,writev,pwritev,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,"
    "unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat,ftruncate,truncate,fallocate,fsync,fdatasync,sync,syncfs,"
    "sync_file_range,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utimensat,sendfile,copy_file_range,splice,"
    "setxattr,fsetxattr,removexattr"
)
"""System calls that change a disk, or what of it is lost with the power."""


def test_every_system_call_that_changes_the_disk_is_an_operation(
    root: Path, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    """What is killed before, and recorded, is all that the kernel is asked for: strace sees nothing else."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not here: run `make system-deps`")
    strace = (
        "strace",
        "-f",
        "-y",
        "-qq",
        "-e",
        "signal=none",
        "-e",
        f"trace={STATE}",
        "-o",
        "TRACED",
    )
    operations, trace = listed(root, versions[1], tmp_path, *strace)
    calls = re.findall(rf"^\d+ +(\w+)\((.*{re.escape(str(root))}.*)", trace, re.MULTILINE)
    changing = Counter(
        call
        for call, rest in calls
        if call not in ("open", "openat") or re.search(r"O_(WRONLY|RDWR|CREAT)", rest)
    )
    names = {
        "os.rename": "rename",
        "os.link": "link",
        "os.symlink": "symlink",
        "os.mkdir": "mkdir",
        "open": "openat",
    }
    known = Counter(names.get(word, word) for word in (operation.split()[0] for operation in operations))
    assert changing == known and sum(known.values()) > 40


WITHOUT = ["fetch file", "write file", "keep folder", "keep generations", "switch folder"]


def test_every_sync_is_one_of_those_that_are_left_out(
    root: Path, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    operations, _ = listed(root, versions[1], tmp_path)
    syncs = {line.rpartition(": ")[2] for line in operations if line.startswith("fsync ")}
    # The folder of the record is synced when it is written, and once more with all of the generation.
    assert syncs == {*WITHOUT, "write folder"}


@pytest.mark.parametrize("without", WITHOUT)
def test_a_sync_that_is_left_out_shows(
    root: Path, versions: tuple[Path, Path], tmp_path: Path, without: str
) -> None:
    """Every sync of an installation is needed: the replay above finds a state that is broken without it."""
    assert run(root, versions[1], "record", tmp_path / "moments", without) == 0
    broken = []
    for number, moment in enumerate(pickle.loads((tmp_path / "moments").read_bytes())):
        for synced in (False, True):
            state = tmp_path / f"state{number}{synced}"
            build(moment.tree, state, moment, synced, {})
            try:
                active_and_whole(state, moment)
            except (AssertionError, ErnieExportError):
                broken.append(moment.operation)
            shutil.rmtree(state)
    assert broken
