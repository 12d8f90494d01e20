"""One bundle to several devices at once; canaries first, and the rest only if those are well.

Each device stands for itself: one that fails changes nothing for the others.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from ernie_export.bundle.manifest import Manifest
from ernie_export.distribute.ssh_destination import Destination, receiver
from ernie_export.distribute.ssh_failures import ended
from ernie_export.distribute.ssh_messages import Done, Failed, Step
from ernie_export.distribute.ssh_process import SshProcess
from ernie_export.distribute.ssh_sender import Parcel, Sender
from ernie_export.errors import WorkError

AT_ONCE = 32
"""Devices at a time."""
Outcome = Literal["installed", "already active", "failed", "left out"]


class HostResult(BaseModel):
    """How it went with one device."""

    model_config = ConfigDict(frozen=True)

    host: str
    """As it was given."""
    canary: bool
    outcome: Outcome
    generation: int | None = None
    """The one that is active there now, as far as it was told."""
    signer: str | None = None
    sent: int = 0
    """Bytes given to ssh, the conversation included."""
    seconds: float = 0.0
    cause: str | None = None
    """Why it failed, or was left out."""
    remedy: str | None = None

    @property
    def well(self) -> bool:
        return self.outcome in ("installed", "already active")


class Deployed(BaseModel):
    """What `deploy --json` prints."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    bundle: str
    manifest_sha256: str
    size: int
    """Bytes of the bundle."""
    hosts: list[HostResult]

    @property
    def failed(self) -> list[HostResult]:
        return [host for host in self.hosts if not host.well]


class Watch(Protocol):
    """Who looks on; called from several threads."""

    def connecting(self, host: str) -> None: ...

    def step(self, host: str, step: Step) -> None: ...

    def ended(self, result: HostResult) -> None: ...


@dataclass(frozen=True)
class Way:
    """How the devices are reached, and what runs there."""

    program: str = "ernie-export"
    """A piece of shell."""
    root: str | None = None
    """Where the devices keep their bundles; None: where they do anyway."""
    ssh_config: Path | None = None
    """In place of ~/.ssh/config."""


class Rollout:
    def __init__(self, parcel: Parcel, hosts: Sequence[Destination], way: Way, watch: Watch):
        self._parcel = parcel
        self._hosts = hosts
        self._way = way
        self._watch = watch
        self._offer = parcel.offer(f"{socket.gethostname()}:{parcel.folder}")
        self._lock = threading.Lock()
        self._running: set[SshProcess] = set()
        self._stopped = False

    def run(self, canaries: int = 0, at_once: int = AT_ONCE, observe: float = 0) -> Deployed:
        """Deploy to all of them, the first `canaries` before the others.

        `observe`: seconds for which the canaries' services have to stay ready before the others begin.

        Whatever happens to a device is in its result. An exception in this thread, Ctrl-C say, ends all
        connections; what has arrived stays where it is.
        """
        results: list[HostResult] = []
        for wave in (self._hosts[:canaries], self._hosts[canaries:]):
            if ill := next((result for result in results if not result.well), None):
                results += [self._left_out(host, ill) for host in wave]
            elif wave:
                canary = not results and canaries > 0
                results += self._at_once(wave, canary, min(at_once, len(wave)), observe if canary else 0)
        return Deployed(
            bundle=str(self._parcel.folder),
            manifest_sha256=self._parcel.files[Manifest.FILE].sha256,
            size=self._parcel.size,
            hosts=results,
        )

    def _at_once(
        self, wave: Sequence[Destination], canary: bool, threads: int, observe: float
    ) -> list[HostResult]:
        with ThreadPoolExecutor(threads) as pool:
            sent = [pool.submit(self._deploy, host, canary, observe) for host in wave]
            try:
                return [each.result() for each in sent]
            except BaseException:
                self._stop()
                raise

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for ssh in self._running:
                ssh.terminate()

    def _deploy(self, host: Destination, canary: bool, observe: float) -> HostResult:
        begun = time.monotonic()
        self._watch.connecting(host.text)
        result = HostResult(host=host.text, canary=canary, outcome="failed")
        ssh = None
        try:
            ssh = self._connection(host)
            told = self._converse(host, ssh, observe)
            result = result.model_copy(update=found(told, observe))
        except WorkError as error:
            result = result.model_copy(update={"cause": error.cause, "remedy": error.remedy})
        seconds = time.monotonic() - begun
        result = result.model_copy(update={"sent": ssh.sent if ssh else 0, "seconds": seconds})
        self._watch.ended(result)
        return result

    def _connection(self, host: Destination) -> SshProcess:
        with self._lock:
            if self._stopped:
                raise WorkError("It was not begun", "Deploy again.")
            ssh = SshProcess(host.command(receiver(self._way.program, self._way.root), self._way.ssh_config))
            self._running.add(ssh)
            return ssh

    def _converse(self, host: Destination, ssh: SshProcess, observe: float) -> Done | Failed:
        sender = Sender(self._parcel, ssh, lambda step: self._watch.step(host.text, step))
        try:
            told = sender.send(self._offer.model_copy(update={"observe": observe}))
        finally:
            with self._lock:
                self._running.discard(ssh)
        if told is None:
            raise ended(host, ssh.code, ssh.errors, sender.begun)
        return told

    def _left_out(self, host: Destination, ill: HostResult) -> HostResult:
        result = HostResult(
            host=host.text,
            canary=False,
            outcome="left out",
            cause=f"The canary {ill.host} is not well",
            remedy="Deploy again when it is.",
        )
        self._watch.ended(result)
        return result


def found(told: Done | Failed, observe: float) -> dict[str, object]:
    """What the device said, as fields of a HostResult; `observe` is what it was asked for."""
    if isinstance(told, Failed):
        error = WorkError(
            told.cause, told.remedy
        )  # of a program elsewhere: shortened, and without control codes
        return {"cause": error.cause, "remedy": error.remedy, "generation": told.active}
    if told.observed < observe:
        return {
            "cause": "It runs the bundle, and its ernie-export is too old to observe the service",
            "remedy": "Update it there, or do without --observe.",
            "generation": told.generation,
        }
    outcome: Outcome = "already active" if told.already else "installed"
    return {"outcome": outcome, "generation": told.generation, "signer": told.signer}
