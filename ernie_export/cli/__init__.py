"""The command line: read arguments, call one function, show the result.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 a gate, a verification or the work
failed; 2 the user's mistake; 130 interrupted.
"""

from __future__ import annotations

import sys

from ernie_export.cli.bus_error import tell_of_bus_errors
from ernie_export.cli.failures import told

ANYWHERE = ("--quiet", "--debug")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (default: this process's own); returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows another one; it does not end the program.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    tell_of_bus_errors()
    with told(debug="--debug" in arguments) as outcome:
        from ernie_export.cli.app import app

        outcome.exit_code = (
            app(_globals_first(arguments), prog_name="ernie-export", standalone_mode=False) or 0
        )
        sys.stdout.flush()
    return outcome.exit_code


def _globals_first(arguments: list[str]) -> list[str]:
    """`build … --quiet` means `--quiet build …`; nothing moves from behind a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    moved = [word for word in arguments[:end] if word in ANYWHERE]
    return moved + [word for word in arguments[:end] if word not in ANYWHERE] + arguments[end:]
