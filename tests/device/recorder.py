"""Runs an installation, and kills it before one of the operations that change the disk, or records them all.

    python -m tests.device.recorder ROOT BUNDLE kill N        ends by SIGKILL before the Nth operation
    python -m tests.device.recorder ROOT BUNDLE record FILE   pickles the state before each operation
    python -m tests.device.recorder ROOT BUNDLE list FILE     writes the operations, one a line

With a service.toml in ROOT the service is told. A trailing "keep folder" is as if that function synced no folder:

    python -m tests.device.recorder ROOT BUNDLE record FILE "keep folder"

It says "begun" as soon as the installation begins.

The trial of the engine, and the stages of a kit that load it, are left out: they change nothing, and take longer
than all the rest.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import stat
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ernie_export.engine.found import Found
from ernie_export.validate.gates import evaluate

HERE = Found("x86_64", "1.32.0", "", None, None, "")
STAGES: dict[str, dict[str, Any]] = {
    "engine": {"requires": {}, "highest_anonymous": 1},
    "answers": {
        "tried": {"token_ms": 1.0, "prefill_ms": 1.0, "metrics": {"logits.non_finite": 0.0}},
        "gates": [asdict(result) for result in evaluate({"logits.non_finite": 0.0}, {})],
        "inputs": {"windows": 1, "tokens": 2, "sha256": ""},
    },
    "speed": {"threads": 1, "bandwidth": None, "memory": {}, "prefill": [], "decode": []},
}
"""What they would have found."""
WRITES = {"write", "writelines", "truncate"}
"""Of open files, which nothing audits."""
CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@dataclass
class Node:
    kind: str
    """"file", "folder" or "link"."""
    inode: int
    target: str = ""
    entries: dict[str, Node] = field(default_factory=dict)


@dataclass
class Moment:
    """What a loss of power before one operation would find."""

    operation: str
    tree: Node
    """Every name as it is now."""
    contents: dict[int, bytes]
    """By inode: what was last synced."""
    folders: dict[int, dict[str, Node]]
    """By inode: the names that were last synced."""


class Recorder:
    def __init__(self, root: Path):
        self.root = root
        self.moments: list[Moment] = []
        self.contents: dict[int, bytes] = {}
        self.folders: dict[int, dict[str, Node]] = {}
        for path in [root, *root.rglob("*")]:  # what was there before is on the disk
            self.synced(path)

    def look(self, path: Path) -> Node:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            return Node("link", found.st_ino, os.readlink(path))
        if not stat.S_ISDIR(found.st_mode):
            return Node("file", found.st_ino)
        entries = {entry.name: self.look(entry) for entry in path.iterdir()}
        return Node("folder", found.st_ino, entries=entries)

    def synced(self, path: Path) -> None:
        if path.is_symlink() or not path.exists():
            return
        node = self.look(path)
        if node.kind == "file":
            self.contents[node.inode] = path.read_bytes()
        else:
            self.folders[node.inode] = node.entries

    def before(self, operation: str) -> None:
        moment = Moment(operation, self.look(self.root), dict(self.contents), dict(self.folders))
        self.moments.append(moment)


def changes(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Whether an audited event is about to change something below the root."""
    paths = [os.fsdecode(each) for each in arguments if isinstance(each, (str, bytes, os.PathLike))]
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(writes) and paths[:1] != [] and paths[0].startswith(root)
    return event in CHANGES and any(path.startswith(root) for path in paths)


def syncing(path: Path) -> str:
    """Which function syncs, and what: "switch folder", "write file"."""
    frame = sys._getframe(2)
    if frame.f_code.co_name == "sync" and frame.f_back:  # of ernie_export.atomic
        frame = frame.f_back
    kind = path.name if path.name == "generations" else "folder" if path.is_dir() else "file"
    return f"{frame.f_code.co_name} {kind}"


def main(root: Path, bundle: str, how: str, what: str, without: str = "") -> None:
    from ernie_export.device import install as module
    from ernie_export.device.place import Place
    from ernie_export.device.rules import service_of
    from ernie_export.distribute import blobs
    from ernie_export.distribute.policy import Policy
    from ernie_export.kit import build, stage

    module.try_out = lambda *_: None  # type: ignore[assignment]
    module.require_suited = lambda *_: None  # type: ignore[assignment]
    build.require_fit = lambda *_: HERE  # type: ignore[assignment]
    stage.run = lambda name, *_: STAGES[name]  # type: ignore[assignment]
    blobs.AT_ONCE = 1  # so that the operations have an order
    offer, place = module.Offer.find(bundle), Place(root)
    service = service_of(place)
    recorder = Recorder(root) if how == "record" else None
    listed: list[str] = []
    count, busy, fsync = 0, False, os.fsync

    def happens(operation: str) -> None:
        nonlocal count
        count += 1
        listed.append(operation)
        if recorder:
            recorder.before(operation)
        elif how == "kill" and count == int(what):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if not busy and changes(event, arguments, str(root)):
            busy = True
            happens(f"{event} {arguments[0]}")
            busy = False

    def writing(_: FrameType, event: str, called: Any) -> None:
        nonlocal busy
        if event != "c_call" or busy or called.__name__ not in WRITES:
            return
        file = called.__self__
        if isinstance(file, io.BufferedIOBase | io.RawIOBase) and str(file.name).startswith(str(root)):  # type: ignore[union-attr]
            busy = True
            happens(f"{called.__name__} {file.name}")  # type: ignore[union-attr]
            busy = False

    def watched(descriptor: int) -> None:
        nonlocal busy
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        busy, what = True, syncing(path)
        happens(f"fsync {path}: {what}")
        if what != without:
            fsync(descriptor)
            if recorder:
                recorder.synced(path)
        busy = False

    os.fsync = watched
    sys.addaudithook(hook)
    threading.setprofile(writing)
    sys.setprofile(writing)
    print("begun", flush=True)
    module.install(offer, place, Policy(unsigned=True, downgrade=True), service)
    busy = True
    if how == "list":
        Path(what).write_text("".join(f"{operation}\n" for operation in listed))
    if recorder:
        recorder.before("the end")
        Path(what).write_bytes(pickle.dumps(recorder.moments))


if __name__ == "__main__":
    # Pickled by the name under which the test imports it, not as __main__.
    from tests.device import recorder as itself

    itself.main(Path(sys.argv[1]), *sys.argv[2:])
