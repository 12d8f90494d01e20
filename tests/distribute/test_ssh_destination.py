"""How a device may be called, and what ssh makes of it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_export.distribute.ssh_destination import Destination, destinations, receiver
from ernie_export.errors import UserError


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("jetson", None, "jetson", None),
        ("nvidia@jetson-1.local:2222", "nvidia", "jetson-1.local", 2222),
        ("me@example.com@host", "me@example.com", "host", None),
        ("root@[fe80::1%usb0]:22", "root", "fe80::1%usb0", 22),
        ("10.0.0.7", None, "10.0.0.7", None),
    ],
)
def test_what_is_a_host(text: str, user: str | None, host: str, port: int | None) -> None:
    assert Destination.parse(text) == (user, host, port, text)


NONE = """-oProxyCommand=x root@-oProxyCommand=x -root@host a;b $(id) @host host:0 host:65536 host: [::1 ::1 host- a'b
host\u0301 ssh://host a/b"""


@pytest.mark.parametrize("text", ["", "a b", "-oProxyCommand=touch x", "a\nb", *NONE.split()])
def test_what_is_none(text: str) -> None:
    with pytest.raises(UserError, match=r"is no host\. Write \[USER@\]HOST"):
        Destination.parse(text)


@given(st.text(alphabet="-@:[].%ab0 =\n;$'oP/", max_size=20))
def test_nothing_that_is_taken_can_be_an_option_or_shell(text: str) -> None:
    try:
        found = Destination.parse(text)
    except UserError:
        return
    command = found.command("true")
    assert command[-3] == "--" and not found.login.startswith("-")
    assert shlex.split(found.login) == [found.login]


def test_ssh_understands_it_as_it_is_meant(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "Host jetson\n  HostName 10.0.0.7\n  RemoteCommand top\n  BatchMode no\n"
    )
    command = Destination.parse("nvidia@jetson:2222").command("true", tmp_path / "config")
    ran = subprocess.run([command[0], "-G", *command[1:]], capture_output=True, text=True, check=True)
    told = dict(line.split(" ", 1) for line in ran.stdout.splitlines() if " " in line)
    assert (told["hostname"], told["user"], told["port"]) == ("10.0.0.7", "nvidia", "2222")
    assert told["batchmode"] == "yes" and "remotecommand" not in told
    assert told["stricthostkeychecking"] in ("ask", "true")


def test_one_host_twice() -> None:
    with pytest.raises(UserError, match="b:22 is named twice"):
        destinations(["a", "b:22", "b", "b:22"])


def test_a_root_is_one_word_of_the_shell_over_there() -> None:
    assert shlex.split(receiver("sudo -n ernie-export", "/a b; rm")) == [
        *("sudo", "-n", "ernie-export", "device", "receive", "--root", "/a b; rm")
    ]
