"""A disk that is full, or fills while a bundle is installed: a real one, small, in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BuiltBundle

PAGE = os.sysconf("SC_PAGE_SIZE")
LOOK = """
import json, sys
from pathlib import Path
from ernie_export.bundle.verify import verify
from ernie_export.device.place import Place
root = Path(sys.argv[1])
left = [path.name for path in (root / "generations").iterdir() if path.name[0] == "."]
print(json.dumps([Place(root).active().number, verify(root / "current" / "bundle"), left]))
"""


def pages(folder: Path) -> int:
    """Bytes that a folder's files take on a disk of whole pages."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // PAGE) * PAGE for size in sizes)


@pytest.mark.parametrize("how", ["no room", "fills with the last files", "room"])
def test_a_full_disk_leaves_the_old_version(bundle: BuiltBundle, tmp_path: Path, how: str) -> None:
    first, second = bundle("int4"), bundle("int8")
    # What both have is there already.
    held = {path.read_bytes() for path in first.rglob("*") if path.is_file()}
    new = [path for path in second.rglob("*") if path.is_file() and path.read_bytes() not in held]
    needed = sum(path.stat().st_size for path in new)
    size = pages(first) + 256 * PAGE  # folders, links and records take pages too
    size += needed // 2 if how == "no room" else 2 * needed
    root = tmp_path / "disk"
    root.mkdir()
    install = f'"{sys.executable}" -m tests.device.recorder "{root}"'
    script = f"""
        mount -t tmpfs -o size={size} tmpfs "{root}" && {install} "{first}" kill 0 > /dev/null || exit 9
        {filling(root, needed) if how == "fills with the last files" else ""}
        {install} "{second}" kill 0; echo "ended $?"
        rm -f "{root}/b"
        "{sys.executable}" -c '{LOOK}' "{root}"
        {install} "{second}" kill 0; echo "again $?"
    """
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    ran = subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    lines = [line for line in ran.stdout.splitlines() if line != "begun"]
    assert len(lines) == 3, ran.stderr
    ended, state, again = lines
    active, problems, left = json.loads(state)
    assert problems == [] and left == [], ran.stderr
    if how == "room":
        assert (ended, active, again) == ("ended 0", 2, "again 1")  # 1: it is active already
        return
    assert (ended, active) == ("ended 1", 1), ran.stderr
    words = "The bundle needs" if how == "no room" else "No space left on device"
    assert words in ran.stderr
    assert again == ("again 1" if how == "no room" else "again 0"), ran.stderr


def filling(root: Path, needed: int) -> str:
    """All but what an installation asks for, in bytes, and four pages: the disk counts whole pages for every file."""
    code = (
        "import os, shutil; "
        f"free = shutil.disk_usage({str(root)!r}).free; "
        f"open(os.path.join({str(root)!r}, chr(98)), chr(119) + chr(98)).write(bytes(free - {needed + 4 * PAGE}))"
    ).replace("'", '\\"')
    return f'"{sys.executable}" -c "{code}"'
