"""One bundle to one device: ssh runs the receiver there, which asks for what it lacks and installs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.bundle.verify import verify
from ernie_export.digest import pieces
from ernie_export.distribute.artifact import files_of
from ernie_export.distribute.ssh_messages import PROTOCOL, Done, Failed, Hello, Offer, Step, Told, Want
from ernie_export.distribute.ssh_process import SshProcess
from ernie_export.errors import WorkError

CHATTER = 64 << 10
"""Bytes that a login shell may print before our program speaks."""


@dataclass(frozen=True)
class Parcel:
    """A bundle that is ready to be sent."""

    folder: Path
    files: dict[str, FileEntry]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Raises UserError where it is no bundle, WorkError where a file is missing or has another size."""
        manifest = Manifest.read(folder)
        if problems := verify(folder, content=False):
            raise WorkError(
                f"{folder} is not what was built: {problems[0].path}: {problems[0].message}",
                "Fetch or build the bundle again.",
            )
        return cls(folder.absolute(), files_of(folder, manifest))

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files.values())

    def offer(self, name: str) -> Offer:
        return Offer(name=name, documents={path: self.files[path] for path in UNLISTED if path in self.files})

    def bytes_of(self, want: Want) -> Iterator[bytes | memoryview]:
        """A file from some byte on, of exactly the length that the manifest lists.

        Raises:
            WorkError: there is no such file in the bundle, or it has become another one.
        """
        entry = self.files.get(want.path)
        if entry is None or want.start > entry.size:
            raise WorkError(
                f"It asks for {want.path!r}, which the bundle does not hold", "Look at the program there."
            )
        left = entry.size - want.start
        try:
            with (self.folder / want.path).open("rb", buffering=0) as file:
                file.seek(want.start)
                for piece in pieces(file, left):
                    yield piece
                    left -= len(piece)
        except FileNotFoundError:
            pass
        if left:
            raise WorkError(
                f"{want.path} changed while the bundle travelled", "Fetch or build the bundle again."
            )


class Sender:
    """This end of the conversation."""

    def __init__(self, parcel: Parcel, ssh: SshProcess, watch: Callable[[Step], None]):
        self._parcel = parcel
        self._ssh = ssh
        self._watch = watch
        self._failure: WorkError | None = None
        # A file is wanted once, and once more where the beginning that was there proves damaged.
        self._wants_left = 2 * len(parcel.files)
        self.begun = False
        """Whether our program over there has answered."""

    def send(self, offer: Offer) -> Done | Failed | None:
        """What the device says in the end; None where it, or ssh, ended before.

        Raises:
            WorkError: this end gave up.
        """
        with ThreadPoolExecutor(1) as sending, self._ssh:  # so ssh ends first, and with it what is being sent
            told = self._converse(offer, sending)
        if self._failure:
            raise self._failure
        return told

    def _converse(self, offer: Offer, sending: ThreadPoolExecutor) -> Done | Failed | None:
        lines = self._ssh.lines()
        if not self._greeted(lines):
            return None
        sending.submit(self._send, iter([offer.line()]))
        for line in lines:
            try:
                told = Told.validate_json(line)
            except ValidationError:
                self._fail(
                    WorkError(f"It says what is no word of ours ({_shown(line)})", "Look at --program.")
                )
                break
            if isinstance(told, Want) and not self._wants_left:
                self._fail(WorkError("It asks for files without end", "Look at the program there."))
                break
            elif isinstance(told, Want):
                self._wants_left -= 1
                sending.submit(self._send, self._parcel.bytes_of(told))
            elif isinstance(told, Step):
                self._watch(told)
            else:
                return told
        return None

    def _greeted(self, lines: Iterator[bytes]) -> bool:
        """Whether our program answers; what a login shell prints before it is passed over."""
        passed = 0
        for line in lines:
            try:
                hello = Hello.model_validate_json(line)
            except ValidationError:
                passed += len(line)
                if passed > CHATTER:
                    self._fail(
                        WorkError(
                            f"It is not ernie-export that answers ({_shown(line)})", "Look at --program."
                        )
                    )
                    return False
                continue
            if hello.protocol != PROTOCOL:
                self._fail(
                    WorkError(
                        f"ernie-export {hello.version} there does not understand this one",
                        "Bring both to the same version.",
                    )
                )
                return False
            self.begun = True
            return True
        return False

    def _send(self, pieces: Iterator[bytes | memoryview]) -> None:
        try:
            for piece in pieces:
                self._ssh.write(piece)
        except BrokenPipeError:  # why, the device has said, or ssh will
            return
        except WorkError as error:
            self._fail(error)
        except OSError as error:
            self._fail(
                WorkError(f"{error.filename}: {error.strerror}", "Make it readable, then deploy again.")
            )

    def _fail(self, error: WorkError) -> None:
        """This end gives up, and the other one sees the connection end."""
        self._failure = self._failure or error
        self._ssh.terminate()


def _shown(line: bytes) -> str:
    return line.decode(errors="replace").strip()[:100]
