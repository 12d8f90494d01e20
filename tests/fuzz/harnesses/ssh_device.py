"""What a device says to who deploys: lines, of which some are words of ours; and what a person then sees."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from ernie_export.bundle.manifest import FileEntry
from ernie_export.cli.deploy_table import LiveTable, summary
from ernie_export.distribute.ssh_messages import LONGEST, Done, Failed, Hello, Step, Want
from ernie_export.distribute.ssh_process import SshProcess
from ernie_export.distribute.ssh_rollout import Deployed, HostResult, found
from ernie_export.distribute.ssh_sender import Parcel, Sender

JSON = False
CONTENT = b"0123456789"
ENTRY = FileEntry(size=len(CONTENT), sha256="0" * 64)
NAMES = ("manifest.json", "report.json", "model.onnx")
STEP = Step(title="Fetch", done=4, total=10, unit="B")
DONE = Done(generation=3, signer="us", already=False, observed=1)
FAILED = Failed(cause="No room", remedy="Make some.", active=None)
TOKENS = (b'{"kind":"want","path":"model.onnx","start":0}\n', b'{"kind":"step","title":"', b'"done":', b'"total":',
          b'"unit":"', b'"kind":"done"', b'"kind":"failed"', b"NaN", b"1e999", b"\\u001b[2J", b"\n", b"\\ud800",
          b'"protocol":2', b"\x1b[2J", b'"generation":', b"\\u202e")  # fmt: skip


def seeds() -> Iterator[bytes]:
    hello = Hello(version="1").line()
    wants = b"".join(Want(path=name, start=start).line() for name in NAMES for start in (0, 4))
    yield b"Welcome!\n" + hello + STEP.line() + wants + DONE.line()
    yield hello + FAILED.line()
    yield hello + wants * 2


class Told:
    """In place of an ssh process: it says what it was given, and counts what it gets."""

    def __init__(self, said: bytes):
        self._said = io.BytesIO(said)
        self.sent = 0

    def lines(self) -> Iterator[bytes]:
        while line := self._said.readline(LONGEST):
            yield line

    def write(self, data: bytes | memoryview) -> None:
        self.sent += len(data)

    def terminate(self) -> None:
        pass

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def parse(data: bytes, folder: Path) -> None:
    for name in NAMES:
        (folder / name).write_bytes(CONTENT)
    parcel = Parcel(folder, dict.fromkeys(NAMES, ENTRY))
    ssh, table = Told(data), LiveTable("bundle", ["device"], 1)
    table.connecting("device")

    def step(told: Step) -> None:
        table.step("device", told)
        _look(table)

    told = Sender(parcel, cast(SshProcess, ssh), step).send(parcel.offer("here"))
    assert ssh.sent <= len(parcel.offer("here").line()) + 2 * parcel.size
    if told is None:
        return
    result = HostResult(host="device", canary=True, outcome="failed").model_copy(update=found(told, 1))
    table.ended(result)
    _look(table)
    deployed = Deployed(bundle="bundle", manifest_sha256="0" * 64, size=1, hosts=[result])
    _look(summary(deployed))
    assert Deployed.model_validate_json(deployed.model_dump_json()) == deployed


def _look(shown: object) -> None:
    """Nothing moves the terminal's cursor."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200, color_system=None, force_terminal=False)
    console.print(shown)
    text = cast(io.StringIO, console.file).getvalue()
    assert all(character.isprintable() or character == "\n" for character in text), text
