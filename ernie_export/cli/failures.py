"""Whatever goes wrong becomes one line on stderr, `error: cause. remedy`, and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ernie_export import failure
from ernie_export.errors import ErnieExportError, UserError, WorkError
from ernie_export.failure import INTERRUPTED


@dataclass
class Outcome:
    exit_code: int = 0


@contextmanager
def told(debug: bool) -> Iterator[Outcome]:
    """Runs the block; its exceptions are told to the user, with a traceback first if `debug`."""
    outcome = Outcome()
    try:
        yield outcome
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        outcome.exit_code = WorkError.exit_code
    except SystemExit:
        raise
    except BaseException as exception:
        if debug:
            traceback.print_exc()
        error = as_error(exception)
        if error is None:
            outcome.exit_code = INTERRUPTED
        else:
            print(failure.line(error), file=sys.stderr)
            outcome.exit_code = error.exit_code


def as_error(exception: BaseException) -> ErnieExportError | None:
    """What to tell; None where the user himself ended it."""
    import typer

    if isinstance(exception, (KeyboardInterrupt, typer.Abort)):
        return None
    if isinstance(exception, typer.BadParameter.__mro__[1:3]):  # click's UsageError and ClickException
        return _usage_error(exception)
    if isinstance(exception, ModuleNotFoundError) and not str(exception.name).startswith("ernie_export"):
        return WorkError(
            f"The package {exception.name} is not installed",
            "`ernie-export doctor` tells what is missing and how to get it.",
        )
    return failure.as_error(exception)


def _usage_error(exception: BaseException) -> UserError:
    context = getattr(exception, "ctx", None)
    command = context.command_path if context else "ernie-export"
    message = exception.format_message() if hasattr(exception, "format_message") else str(exception)
    cause, _, hint = message.rstrip(".").partition(". ")
    return UserError(cause, f"{hint} See `{command} --help`.".lstrip())
