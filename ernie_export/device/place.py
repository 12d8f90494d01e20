"""Where a device keeps its bundles, and which one is active.

    ROOT/current            a link to the active generation; its renaming is the switch
    ROOT/pending.json       a switch whose service nobody has seen ready yet
    ROOT/generations/7/     bundle/, and installed.json: what it is, and which one was active before it; kit/, if it
                            was built from one
    ROOT/generations/7/refused.json   why it is not used, where it failed
    ROOT/blobs/             the files of all generations by their SHA-256; the bundles link to them
    ROOT/built/             what is being built from a kit, so that an interrupted build goes on

A generation is complete before it has its name, and the switch is one rename: whenever the power goes,
`current` leads to the old generation or to the new one, and both are whole.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from ernie_export import atomic, lock
from ernie_export.device.service import Service
from ernie_export.distribute.blobs import Blobs
from ernie_export.errors import UserError
from ernie_export.validate.asking import Tried
from ernie_export.validate.document import Document

KEPT = 2
"""Generations: the active one and the one before it."""


class Installed(Document):
    """installed.json: one generation."""

    FILE: ClassVar[str] = "installed.json"
    KIND: ClassVar[str] = "record"
    REMEDY: ClassVar[str] = "Install the bundle again."

    schema_version: Literal[1] = 1
    number: int
    source: str
    """An address with its digest, or a folder."""
    manifest_sha256: str
    """Of what was offered: of the kit, where it was one."""
    kit: str | None = None
    """The same, where what was offered is a kit, from which the bundle was built here."""
    checkpoint: str
    recipe: str
    target: str
    built: str
    """When its report was made: ISO 8601, UTC."""
    signer: str | None
    """By the policy's name; None: unsigned, and the policy allowed it."""
    before: int | None
    """The generation that was active when this one came."""
    tried: Tried | None = None
    """What its trial saw; None in records from before it was kept."""
    max_token_ms: float | None = None
    """The ceiling that it was held to."""


class Refused(Document):
    """refused.json: why a generation is not used."""

    FILE: ClassVar[str] = "refused.json"
    KIND: ClassVar[str] = "record"
    REMEDY: ClassVar[str] = "Install the bundle again."

    schema_version: Literal[1] = 1
    reason: str


class Pending(Document):
    """pending.json: it stands there before the switch, and goes when the service was seen ready, or all is back."""

    FILE: ClassVar[str] = "pending.json"
    KIND: ClassVar[str] = "record"
    REMEDY: ClassVar[str] = "Remove it, and restart the service yourself."

    schema_version: Literal[1] = 1
    number: int
    """The generation that is to become the active one."""
    before: int | None
    """The one to go back to."""
    service: Service
    observe: float
    """Seconds for which the service has to stay ready."""


class Place:
    def __init__(self, root: Path):
        self.root = root.absolute()
        self.generations = self.root / "generations"
        self.current = self.root / "current"
        self.built = self.root / "built"

    @contextmanager
    def held(self) -> Iterator[Blobs]:
        """This process alone changes the place, beginning from what is whole, and leaving nothing half-made.

        Whatever mask the process has: a service of another user can read what is made, and nobody else write it.

        Raises:
            WorkError: another one is at it.
        """
        with _umask(0o022):
            self.generations.mkdir(parents=True, exist_ok=True)
        with lock.held(self.root, "Wait for it."), _umask(0o022):
            self._tidy()
            try:
                yield Blobs(self.root / "blobs")
            finally:
                self._tidy()

    def _tidy(self) -> None:
        """Remove what a killed or failed installation left; its blobs stay, for the next try."""
        for left in (*self.root.glob(".current.*"), *self.root.glob(f".{Pending.FILE}.*")):
            left.unlink()
        for left in self.generations.glob(".*"):
            shutil.rmtree(left)

    def numbers(self) -> list[int]:
        """Every generation, the oldest first."""
        return sorted(int(path.name) for path in self.generations.glob("[0-9]*") if path.name.isdecimal())

    def all(self) -> list[Installed]:
        """Every generation whose record is whole, the oldest first."""
        return [installed for number in self.numbers() if (installed := self.known(number))]

    def installed(self, number: int) -> Installed:
        """What was noted of a generation.

        Raises:
            UserError: the record is damaged, or that of another one.
        """
        path = self.generation(number) / Installed.FILE
        found = Installed.load(path)
        if found.number != number:
            raise UserError(f"The record {path} is that of generation {found.number}", Installed.REMEDY)
        return found

    def known(self, number: int) -> Installed | None:
        """The same; None where the record is damaged."""
        try:
            return self.installed(number)
        except UserError:
            return None

    def active_number(self) -> int | None:
        """Where the link leads.

        Raises:
            UserError: to no generation.
        """
        if not self.current.is_symlink():
            return None
        target = os.readlink(self.current)
        found = re.fullmatch(r"generations/([0-9]{1,9})", target)
        if not found:
            raise UserError(f"{self.current} leads to {target}", "Remove it, and install a bundle again.")
        return int(found[1])

    def active(self) -> Installed | None:
        """Raises UserError where the link leads to no generation, or the record there is damaged."""
        number = self.active_number()
        return None if number is None else self.installed(number)

    def refused(self, number: int) -> str | None:
        path = self.generation(number) / Refused.FILE
        try:
            return Refused.load(path).reason if path.exists() else None
        except UserError as error:
            return error.cause  # nobody knows why any more, but it was

    def generation(self, number: int) -> Path:
        return self.generations / str(number)

    def bundle(self, number: int) -> Path:
        return self.generation(number) / "bundle"

    def partial(self, number: int) -> Path:
        return self.generations / f".{number}.partial"

    def next_number(self) -> int:
        return max(self.numbers(), default=0) + 1

    def keep(self, partial: Path, installed: Installed) -> None:
        """A complete generation gets its name; everything of it is on the disk before."""
        installed.write(partial / Installed.FILE)
        for folder, _, _ in os.walk(partial, topdown=False):
            atomic.sync(Path(folder))
        os.rename(partial, self.generation(installed.number))
        atomic.sync(self.generations)

    def refuse(self, number: int, reason: str) -> None:
        Refused(reason=reason).write(self.generation(number) / Refused.FILE)

    def expect(self, pending: Pending) -> None:
        """Before the switch: whoever comes after a loss of power knows what was still to be proved."""
        pending.write(self.root / Pending.FILE)

    def pending(self) -> Pending | None:
        path = self.root / Pending.FILE
        return Pending.load(path) if path.exists() else None

    def settled(self) -> None:
        """Nothing is to be proved any more."""
        if (path := self.root / Pending.FILE).exists():
            path.unlink()
            atomic.sync(self.root)  # before the generation to go back to may be collected

    def switch(self, number: int) -> None:
        """From now on this generation is the active one."""
        beside = self.root / f".current.{number}"
        os.symlink(f"generations/{number}", beside)
        os.rename(beside, self.current)
        atomic.sync(self.root)

    def deactivate(self) -> None:
        """From now on no generation is active."""
        self.current.unlink(missing_ok=True)
        atomic.sync(self.root)

    def earlier(self, than: Installed) -> Installed:
        """The generation that was active before another one.

        Raises:
            UserError: there is none to go back to.
        """
        number = than.before
        if number is None or not self.generation(number).exists() or self.refused(number):
            raise UserError(
                f"There is no generation before {than.number} to go back to", "Install another bundle."
            )
        return self.installed(number)

    def collect(self) -> int:
        """Remove what is neither active nor what one can go back to; the bytes that became free."""
        active, pending = self.active(), self.pending()
        kept = {active.number, active.before} if active else set()
        kept |= {pending.number, pending.before} if pending else set()
        for number in self.numbers():
            if number in kept:
                continue
            doomed = self.partial(number)  # a kill half-way leaves what the next run removes
            os.rename(self.generation(number), doomed)
            shutil.rmtree(doomed)
        shutil.rmtree(self.built, ignore_errors=True)
        freed = 0
        for blob in (self.root / "blobs").glob("*"):
            if blob.stat().st_nlink == 1:
                freed += blob.stat().st_size
                blob.unlink()
        return freed


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
