"""What may be at the other end of ssh; here a process in its place."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ernie_export.bundle.manifest import FileEntry
from ernie_export.distribute.ssh_destination import Destination
from ernie_export.distribute.ssh_failures import ended
from ernie_export.distribute.ssh_messages import Done, Failed, Offer, Step
from ernie_export.distribute.ssh_process import SshProcess
from ernie_export.distribute.ssh_sender import Parcel, Sender
from ernie_export.errors import UserError, WorkError

HELLO = json.dumps({"kind": "ernie-export", "version": "9", "protocol": 1})
DONE = json.dumps({"kind": "done", "generation": 3, "signer": None, "already": False})
SAY = "import sys\ndef say(text): print(text, flush=True)\n"
ENTRY = FileEntry(size=10, sha256="0" * 64)
OFFER = Offer(name="here", documents={"manifest.json": ENTRY, "report.json": ENTRY})


def parcel(folder: Path) -> Parcel:
    (folder / "file").write_bytes(b"0123456789")
    return Parcel(folder, {"file": ENTRY})


def send(folder: Path, code: str, steps: list[Step] | None = None) -> tuple[Done | Failed | None, SshProcess]:
    ssh = SshProcess([sys.executable, "-c", f"{SAY}HELLO, DONE = {HELLO!r}, {DONE!r}\n{code}"])
    seen = steps if steps is not None else []
    return Sender(parcel(folder), ssh, seen.append).send(OFFER), ssh


def test_a_device_gets_what_it_wants(tmp_path: Path) -> None:
    code = """
print("Welcome to this device!")
say(HELLO)
offer = sys.stdin.readline()
assert '"report.json"' in offer
say('{"kind": "step", "title": "Fetch", "done": 4, "total": 10, "unit": "B"}')
say('{"kind": "want", "path": "file", "start": 4}')
assert sys.stdin.read(6) == "456789"
say('{"kind": "want", "path": "file", "start": 10}')
say(DONE)
"""
    steps: list[Step] = []
    told, ssh = send(tmp_path, code, steps)
    assert told == Done(generation=3, signer=None, already=False)
    assert [(step.title, step.done, step.total) for step in steps] == [("Fetch", 4, 10)]
    assert ssh.sent == len(OFFER.line()) + 6 and ssh.code == 0, ssh.errors


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("""say(HELLO); say('{"kind": "want", "path": "../secret", "start": 0}'); sys.stdin.read()""",
         "asks for '../secret', which the bundle does not hold"),
        ("""say(HELLO); say('{"kind": "want", "path": "file", "start": 11}'); sys.stdin.read()""",
         "asks for 'file'"),
        ("""say(HELLO)
for _ in range(3): say('{"kind": "want", "path": "file", "start": 0}')
sys.stdin.read()""", "asks for files without end"),
        ("say(HELLO); say('{\"kind\": \"sing\"}'); sys.stdin.read()", "no word of ours .*sing"),
        ("""say(HELLO); say('{"kind": "step", "title": "x", "done": NaN}'); sys.stdin.read()""", "no word of ours"),
        ("say(HELLO.replace('1', '2')); sys.stdin.read()", "ernie-export 9 there does not understand"),
        ("while True: say('x' * 1000)", r"not ernie-export that answers \(xxx"),
        ("sys.stdout.write('x' * 3_000_000); sys.stdin.read()", r"not ernie-export that answers \(xxx"),
    ],
)  # fmt: skip
def test_what_is_no_device_of_ours(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(WorkError, match=words):
        send(tmp_path, code)


def test_what_a_device_says_is_printable(tmp_path: Path) -> None:
    code = """
say(HELLO)
say('{"kind": "step", "title": "Fetch\\\\u001b[2J", "unit": "' + "B" * 9999 + '"}')
say(DONE)
"""
    steps: list[Step] = []
    send(tmp_path, code, steps)
    assert (steps[0].title, len(steps[0].unit)) == ("Fetch?[2J", 500)


def test_the_bundle_becomes_shorter_on_the_way(tmp_path: Path) -> None:
    code = """
say(HELLO)
open(sys.argv[0] if False else FILE, "w").write("0123")
say('{"kind": "want", "path": "file", "start": 0}')
sys.stdin.read()
"""
    with pytest.raises(WorkError, match="file changed while the bundle travelled"):
        send(tmp_path, f"FILE = {str(tmp_path / 'file')!r}\n{code}")


def test_it_ends_without_a_word(tmp_path: Path) -> None:
    told, ssh = send(tmp_path, "say(HELLO); print('out of luck', file=sys.stderr); sys.exit(3)")
    assert told is None and ssh.code == 3 and ssh.errors == "out of luck\n"


def test_it_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has said its last is not waited for without end."""
    monkeypatch.setattr("ernie_export.distribute.ssh_process.PATIENCE", 0.3)
    code = "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); say(HELLO); say(DONE); time.sleep(99)"
    told, ssh = send(tmp_path, code)
    assert isinstance(told, Done) and ssh.code == -9


def test_no_ssh_client() -> None:
    with pytest.raises(UserError, match=r"There is no ssh here\. Install OpenSSH"):
        SshProcess(["/no/such/ssh"])


@pytest.mark.parametrize(
    ("code", "errors", "begun", "words"),
    [
        (255, "ssh: Could not resolve hostname x: Name or service not known", False, "no host of this name"),
        (255, "a@b: Permission denied (publickey,password).\r\n", False, r"login \(publickey,password\)"),
        (255, "ssh: connect to host b port 22: No route to host\n", False, r"not answer \(No route to host\)"),
        (255, "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", False,
         "may be another machine"),
        (255, "No ED25519 host key is known for b\nHost key verification failed.", False, "key is not known here"),
        (255, "b: line 1: Bad configuration option: foo\nb: terminating", False, "b: line 1: Bad configuration"),
        (255, "kex_exchange_identification: read: Connection reset by peer", False, r"ssh fails \(kex_exchange"),
        (255, "Timeout, server b not responding.\n", True, r"was cut \(Timeout, server b"),
        (255, "", True, r"was cut \(exit code 255\)"),
        (127, "sh: ernie-export: not found", False, "There is no ernie-export"),
        (2, "error: No such command 'receive'. See …", False, "too old to receive"),
        (1, "sudo: a password is required", False, r"does not start there \(sudo: a password"),
        (137, "", True, r"ended in the middle \(exit code 137\)"),
    ],
)  # fmt: skip
def test_what_ssh_means(code: int, errors: str, begun: bool, words: str) -> None:
    with pytest.raises(WorkError, match=words):
        raise ended(Destination.parse("a@b"), code, errors, begun)
