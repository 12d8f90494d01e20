"""What it means that ssh, or the program behind it, ended before it had said how the installation went."""

from __future__ import annotations

import re

from ernie_export.distribute.ssh_destination import Destination
from ernie_export.errors import WorkError

SSH_FAILED, NOT_RUNNABLE, NOT_FOUND = 255, 126, 127
"""Exit codes: of ssh itself, and of the shell over there."""
AGAIN = "Deploy again: it goes on where it stopped."
_PROGRAM = 'pip install "ernie-export[run,distribute]"'
# What OpenSSH's client writes, what we say of it, and what to do.  {host}: as the user wrote it; {login}: for ssh.
_SSH_SAYS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "The host key is not the one that is known: this may be another machine",
        "If it has a new key for a good reason, forget the old one (`ssh-keygen -R`) and log in once by hand.",
    ),
    (
        r"Host key verification failed",
        "Its host key is not known here",
        "Log in once by hand (`ssh {login}`) and compare the key's fingerprint.",
    ),
    (
        r"Permission denied \((?P<why>[^)\n]*)\)",
        "It refuses the login ({why})",
        "Give it your key (`ssh-copy-id {login}`); one with a passphrase has to be in ssh-agent.",
    ),
    (
        r"Too many authentication failures",
        "It refuses the login after too many keys",
        "Name the one key for it in ~/.ssh/config: IdentityFile, and IdentitiesOnly yes.",
    ),
    (
        r"Could not resolve hostname",
        "There is no host of this name",
        "Look at the spelling, and at the network.",
    ),
    (
        r"connect to host .*: (?P<why>[^:\n]+)",
        "It does not answer ({why})",
        "Is it on, and does its sshd run on this port?",
    ),
    (
        r"(?P<why>[^\n]*(?:Bad configuration option|Can't open user config file|Bad owner or permissions)[^\n]*)",
        "ssh's configuration is wrong ({why})",
        "Mend that file.",
    ),
)


def ended(destination: Destination, code: int, errors: str, begun: bool) -> WorkError:
    """`code`: of ssh; `errors`: what came on its stderr; `begun`: our program over there had answered."""
    last = (errors.strip().splitlines() or [f"exit code {code}"])[-1].strip()[:300]
    if code == SSH_FAILED:
        return _cut(last) if begun else _ssh(destination, errors, last)
    if begun:
        return WorkError(f"The program there ended in the middle ({last})", AGAIN)
    if code in (NOT_FOUND, NOT_RUNNABLE):
        return WorkError(
            f"There is no ernie-export ({last})",
            f"Install it there ({_PROGRAM}), or say where it is with --program.",
        )
    if "No such command" in errors:
        return WorkError("The ernie-export there is too old to receive", f"Update it there ({_PROGRAM}).")
    return WorkError(
        f"ernie-export does not start there ({last})",
        f"Log in and run it by hand: `ssh {destination.login}`; --program says what is run.",
    )


def _cut(last: str) -> WorkError:
    return WorkError(f"The connection was cut ({last})", AGAIN)


def _ssh(destination: Destination, errors: str, last: str) -> WorkError:
    for pattern, cause, remedy in _SSH_SAYS:
        if found := re.search(pattern, errors):
            why = found.groupdict().get("why", "").strip()
            return WorkError(cause.format(why=why), remedy.format(login=destination.login))
    return WorkError(f"ssh fails ({last})", f"Try `ssh {destination.login}` by hand.")
