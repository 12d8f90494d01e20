"""The service that runs the active bundle: how it is restarted, and how one knows that it is ready.

restart = ["systemctl", "restart", "ernie.service"]
ready   = ["curl", "--fail", "--silent", "http://localhost:8000/health"]
within  = 120
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ernie_export import toml_file
from ernie_export.errors import WorkError
from ernie_export.progress import Step

EVERY = 0.5
"""Seconds from one question to the next, while it starts."""
OBSERVED_EVERY = 2.0
"""Seconds from one question to the next, while it is observed."""
Command = Annotated[list[str], Field(min_length=1)]


class Service(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    restart: Command
    ready: Command
    """Ends with 0 as soon as the service answers with the new bundle."""
    within: Annotated[float, Field(gt=0)] = 120.0
    """Seconds."""

    @classmethod
    def read(cls, path: Path) -> Service:
        """Raises UserError where the file is none."""
        return toml_file.checked(cls, toml_file.read(path, "service file"), path, "service file")

    def start_anew(self) -> None:
        """Restart the service and wait until it is ready.

        Raises:
            WorkError: it cannot be restarted, or is not ready in time.
        """
        until = time.monotonic() + self.within
        self._run(self.restart, self.within, "cannot be restarted")
        told: WorkError | None = None
        while True:
            try:
                return self._run(self.ready, max(until - time.monotonic(), EVERY), "is not ready")
            except WorkError as error:
                # The last question is cut short by the end of the time, and has less to say than one before.
                told = told if told and isinstance(error, _Hangs) else error
                if time.monotonic() + EVERY > until:
                    raise WorkError(
                        f"The service is not ready after {self.within:.0f} s ({told.cause})", told.remedy
                    ) from error
            time.sleep(EVERY)

    def stay_ready(self, seconds: float, step: Step) -> None:
        """Ask it again and again for that time; `step` advances by the seconds that passed.

        Raises:
            WorkError: it is not ready any more.
        """
        begun, shown = time.monotonic(), 0.0
        while shown < seconds:
            time.sleep(min(OBSERVED_EVERY, seconds - shown))
            self._run(self.ready, self.within, "did not stay ready")
            passed = min(time.monotonic() - begun, seconds)
            step.advance(passed - shown)
            shown = passed

    def _run(self, command: list[str], within: float, what: str) -> None:
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=within, errors="replace")
        except subprocess.TimeoutExpired as error:
            raise _Hangs(f"The service {what}: {command[0]} hangs", "Look at the service's log.") from error
        except OSError as error:
            raise WorkError(
                f"The service {what}: {command[0]}: {error.strerror}", "Mend the service's file."
            ) from error
        if ran.returncode:
            told = (ran.stderr or ran.stdout).strip().splitlines()
            why = told[-1][:200] if told else f"exit code {ran.returncode}"
            raise WorkError(f"The service {what}: {command[0]}: {why}", "Look at the service's log.")


class _Hangs(WorkError):
    """It had no answer in time."""
