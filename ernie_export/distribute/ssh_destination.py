"""Where `deploy` goes to, and the ssh command that leads there: the user's own, with the user's configuration."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from ernie_export.errors import UserError

# None begins with a dash, which ssh would take for an option, and none holds what a shell would act on.
_USER = r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+@-]*)@)?"
_HOST = r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\])"
DESTINATION = re.compile(rf"{_USER}{_HOST}(?::(?P<port>[0-9]{{1,5}}))?")
ALWAYS = (
    "BatchMode=yes",  # a password that somebody would have to type fails at once
    "LogLevel=ERROR",
    "RequestTTY=no",
    "RemoteCommand=none",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ConnectTimeout=20",
    "ServerAliveInterval=15",  # a connection that is dead is given up after a minute
    "ServerAliveCountMax=4",
)
"""Options in front of the user's own.  Whether a host's key is trusted is left to those."""


class Destination(NamedTuple):
    user: str | None
    host: str
    """A name, also one of ~/.ssh/config, or an address; an IPv6 address without its brackets."""
    port: int | None
    text: str
    """As the user wrote it."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`[USER@]HOST[:PORT]`, an IPv6 address in brackets.

        Raises:
            UserError: it is none.
        """
        found = DESTINATION.fullmatch(text)
        port = int(found["port"]) if found and found["port"] else None
        if not found or port == 0 or (port or 0) > 65535:
            raise UserError(
                f"{text!r} is no host", "Write [USER@]HOST[:PORT], or a name of your ~/.ssh/config."
            )
        return cls(found["user"], found["host"].strip("[]"), port, text)

    @property
    def login(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    def command(self, remote: str, config: Path | None = None) -> list[str]:
        """The ssh command that runs the shell command `remote` there; `config` in place of ~/.ssh/config."""
        options = [word for option in ALWAYS for word in ("-o", option)]
        if config:
            options += ["-F", str(config)]
        if self.port:
            options += ["-p", str(self.port)]
        return ["ssh", "-T", *options, "--", self.login, remote]


def destinations(texts: Sequence[str]) -> list[Destination]:
    """Each of them.

    Raises:
        UserError: one is no host, or is named twice.
    """
    found = [Destination.parse(text) for text in texts]
    for at, destination in enumerate(found):
        if any(destination[:3] == other[:3] for other in found[:at]):
            raise UserError(f"{destination.text} is named twice", "Name each host once.")
    return found


def receiver(program: str, root: str | None) -> str:
    """The shell command that receives a bundle; `program` is a piece of shell itself: `sudo -n ernie-export`."""
    return f"{program} device receive" + (f" --root {shlex.quote(root)}" if root else "")
