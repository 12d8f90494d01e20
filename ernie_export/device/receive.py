"""The device's side of `deploy`: the same installation, its bundle coming in over ssh."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pydantic import ValidationError

from ernie_export import __version__, progress
from ernie_export.device import install
from ernie_export.device.place import Place
from ernie_export.device.service import Service
from ernie_export.distribute.policy import Policy
from ernie_export.distribute.ssh_messages import LONGEST, Done, Failed, Hello, Message, Offer, Step
from ernie_export.distribute.ssh_source import SshSource
from ernie_export.errors import ErnieExportError, UserError

EVERY = 0.25
"""Seconds from one word on how far a step is to the next."""
Rules = Callable[[], tuple[Policy, Service | None]]


class Line:
    """The connection, in both directions; who deploys may go away."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO):
        self.incoming = incoming
        self._outgoing = outgoing
        self._lock = threading.Lock()

    @classmethod
    def of_process(cls) -> Line:
        """Take this process's stdin and stdout: what else reads or prints here has no part in them."""
        incoming, outgoing = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        return cls(os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb", buffering=0))

    def tell(self, message: Message) -> None:
        """Say it, if somebody is left to hear it: what has arrived is installed all the same."""
        try:
            with self._lock:
                self._outgoing.write(message.line())
        except OSError:
            pass

    def offer(self) -> Offer:
        """Raises UserError where something else comes in."""
        try:
            return Offer.model_validate_json(self.incoming.readline(LONGEST))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise UserError(
                f"No bundle is offered on stdin ({where}: {first['msg']})",
                "This command is run by `ernie-export deploy`.",
            ) from error


def receive(line: Line, place: Place, rules: Rules) -> None:
    """Install the bundle that is offered, unless it is what is active, and whole.

    Raises:
        UserError, WorkError: as `install`, or `rules`.
    """
    line.tell(Hello(version=__version__))
    offered = line.offer()
    policy, service = rules()
    offer = install.Offer(offered.name, offered.documents, SshSource(line.incoming, line.tell))
    already = False
    try:
        installed = install.install(offer, place, policy, service, Relay(line), offered.observe)
    except install.AlreadyActive as active:
        already, installed = True, active.installed
        if service:
            install.observed(service, offered.observe, Relay(line))
    line.tell(
        Done(generation=installed.number, signer=installed.signer, already=already, observed=offered.observe)
    )


def failed(place: Place, error: ErnieExportError) -> Failed:
    """What to tell of an installation that failed: the reason, and what is active now."""
    try:
        active = place.active()
    except ErnieExportError:
        active = None
    number = active.number if active else None
    return Failed(cause=error.cause, remedy=error.remedy, active=number)


class Relay:
    """Implements `progress.Progress`: who deploys sees it."""

    def __init__(self, line: Line):
        self._line = line

    @contextmanager
    def step(self, title: str, total: float | None = None, unit: str = "") -> Iterator[progress.Step]:
        told = _RelayedStep(self._line, title, total, unit)
        told.tell()
        yield told
        told.tell()


class _RelayedStep:
    def __init__(self, line: Line, title: str, total: float | None, unit: str):
        self._line, self._title, self._total, self._unit = line, title, total, unit
        self._lock = threading.Lock()
        self._done, self._next = 0.0, 0.0

    def advance(self, amount: float = 1) -> None:
        with self._lock:
            self._done += amount
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + EVERY
        self.tell()

    def tell(self) -> None:
        self._line.tell(Step(title=self._title, done=self._done, total=self._total, unit=self._unit))
