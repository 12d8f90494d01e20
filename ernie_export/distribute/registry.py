"""One repository of an OCI registry: its manifests and blobs, streamed, checked, and resumed.

The protocol, its addresses and its log-in are oras'; what is added here is what a file of many
gigabytes needs: little memory, a SHA-256 that is made while the bytes pass, and a transfer that goes
on where a broken connection left it, also in a later process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ernie_export.digest import PIECE, pieces
from ernie_export.distribute.address import Address
from ernie_export.distribute.connection import Connection
from ernie_export.distribute.sessions import Sessions
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Step

if TYPE_CHECKING:
    from requests import Response

CHUNK = 16 << 20
"""Bytes that one request uploads: all that is in memory of a file."""
LARGEST_MANIFEST = 4 << 20
"""Bytes; registries refuse larger ones."""
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LONGEST_ANSWER = 1 << 16
"""Bytes that are read of what it says to a refusal."""
ATTEMPTS = 5
"""Of a transfer that does not get any further, before it is given up."""

RANGE = re.compile(r"(?:bytes=)?0-(?P<last>[0-9]{1,15})")

T = TypeVar("T")


class Broken(Exception):
    """The transfer stopped; it may go on where it stopped."""


@dataclass
class _Progress:
    """How far a transfer got; a step for a bar never goes back."""

    step: Step
    shown: int = 0

    def reach(self, count: int) -> None:
        self.step.advance(max(count - self.shown, 0))
        self.shown = max(count, self.shown)


class Registry:
    def __init__(
        self,
        address: Address,
        ca_file: Path | None = None,
        plain_http: bool = False,
        sessions: Sessions | None = None,
        pause: float = 1.0,
    ):
        """`pause`: seconds before the first new attempt; each further one waits twice as long.

        Raises:
            UserError: the CA file is none, or the registry wants a password that is not known.
            WorkError: the registry does not answer.
        """
        self.address = address
        self._connection = Connection(address, ca_file, plain_http)
        self._sessions = sessions or Sessions.of_user()
        self._pause = pause

    def manifest(self) -> tuple[str, bytes]:
        """The digest and the bytes of the manifest at the address.

        Raises:
            UserError: there is none.
            WorkError: it is not what its digest says, or too large.
        """
        with self._answered() as ask:
            response = ask("GET", f"manifests/{self.address.reference}", {"Accept": MANIFEST}, stream=True)
            if response.status_code == 404:
                raise UserError(
                    f"The registry holds no {self.address}", "Look at the tag; or push a bundle there first."
                )
            _expect(response, 200)
            data = next(response.iter_content(LARGEST_MANIFEST + 1), b"")
        if len(data) > LARGEST_MANIFEST:
            raise WorkError(f"The manifest of {self.address} is larger than 4 MB", "It is none of a bundle.")
        digest = digest_of(data)
        if self.address.digest not in (None, digest):
            raise WorkError(
                f"The registry gave another manifest for {self.address}", "Look who changed the registry."
            )
        return digest, data

    def put_manifest(self, data: bytes) -> str:
        """Its digest. From now on the address' tag means this manifest."""
        digest = digest_of(data)
        reference = self.address.tag or digest
        with self._answered() as ask:
            _expect(
                ask("PUT", f"manifests/{reference}", {"Content-Type": MANIFEST}, data=data), 200, 201, 202
            )
        return digest

    def has(self, digest: str) -> bool:
        with self._answered() as ask:
            response = ask("HEAD", f"blobs/{digest}")
            if response.status_code not in (200, 404):
                _expect(response, 200)
            return response.status_code == 200

    def upload(self, path: Path, digest: str, size: int, step: Step) -> None:
        """A file of `size` bytes and that digest, as a blob.

        Raises:
            UserError: the file is not what its digest says.
            WorkError: the registry refuses it, or cannot be reached any more.
        """
        progress = _Progress(step)
        with path.open("rb") as file:
            self._insistently(
                f"upload {path.name}", progress, lambda: self._upload(file, digest, size, progress)
            )

    def upload_bytes(self, data: bytes) -> str:
        digest = digest_of(data)
        if not self.has(digest):
            with self._answered() as ask:
                place = self._connection.location(_expect(ask("POST", "blobs/uploads/"), 202))
                _expect(ask("PUT", _with_digest(place, digest), OCTETS, data=data), 201)
        return digest

    def download(self, digest: str, size: int, path: Path, step: Step) -> None:
        """The blob into a file; what stands there already is its beginning, and is not fetched again.

        Raises:
            WorkError: the bytes are not those of the digest (the file is removed), there are more or
                fewer than `size`, or the registry cannot be reached any more.
        """
        progress, state = _Progress(step), hashlib.sha256()
        with path.open("a+b") as file:
            file.truncate(min(file.tell(), size))
            file.seek(0)
            for piece in pieces(file):
                state.update(piece)
            progress.reach(file.tell())
            self._insistently(
                f"download {digest}", progress, lambda: self._download(digest, size, file, state, progress)
            )
            file.flush()
            os.fsync(file.fileno())
        if f"sha256:{state.hexdigest()}" != digest:
            path.unlink()
            raise WorkError(
                f"The registry gave other bytes for {digest}",
                "Try again; if it stays so, push the bundle anew.",
            )

    def _download(self, digest: str, size: int, file: BinaryIO, state: Any, progress: _Progress) -> None:
        have = file.tell()
        if have == size:
            return
        with self._answered() as ask:
            # As the blob's own bytes: what would be unpacked on the way could be a bomb.
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
            response = ask("GET", f"blobs/{digest}", headers, stream=True)
            if response.status_code == 404:
                raise WorkError(f"The registry no longer holds {digest}", "Push the bundle again.")
            _expect(response, 200, 206)
            if (packed := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise WorkError(
                    f"The registry packs {digest} ({packed[:20]}), and was asked not to",
                    "Look at what stands in front of the registry.",
                )
            skip = have if response.status_code == 200 else 0
            for piece in _raw(response):
                skipped = min(skip, len(piece))
                skip -= skipped
                piece = piece[skipped:]
                if file.tell() + len(piece) > size:
                    raise WorkError(
                        f"{digest} is larger than the {size} bytes it should have", "Push it anew."
                    )
                file.write(piece)
                state.update(piece)
                progress.reach(file.tell())
        if file.tell() < size:
            raise Broken("the connection ended early")

    def _upload(self, file: BinaryIO, digest: str, size: int, progress: _Progress) -> None:
        key = f"{self.address.host}/{self.address.repository}@{digest}"
        place, start = self._begun(key)
        state = hashlib.sha256()
        file.seek(0)
        for piece in pieces(file, start):
            state.update(piece)
        while chunk := file.read(CHUNK):
            end = start + len(chunk)
            state.update(chunk)
            if end > size or (end == size and f"sha256:{state.hexdigest()}" != digest):
                self._sessions.forget(key)
                raise UserError(
                    f"{file.name} is not the file that the manifest lists", "Build or fetch the bundle again."
                )
            headers = OCTETS | {"Content-Range": f"{start}-{end - 1}"}
            with self._answered() as ask:
                place = self._connection.location(_expect(ask("PATCH", place, headers, data=chunk), 202))
            self._sessions.remember(key, place)
            progress.reach(end)
            start = end
        with self._answered() as ask:
            _expect(ask("PUT", _with_digest(place, digest), OCTETS), 201, 204)
        self._sessions.forget(key)

    def _begun(self, key: str) -> tuple[str, int]:
        """Where an upload goes on, and how many bytes of it the registry has."""
        with self._answered() as ask:
            if place := self._sessions.known(key):
                response = ask("GET", place)
                if response.status_code == 204:
                    found = RANGE.fullmatch(response.headers.get("Range", "0-0"))
                    # A registry that has nothing yet says 0-0, as it would of one byte.
                    last = int(found["last"]) if found else 0
                    return self._connection.location(response), last + 1 if last else 0
                self._sessions.forget(key)
            place = self._connection.location(_expect(ask("POST", "blobs/uploads/"), 202))
        self._sessions.remember(key, place)
        return place, 0

    def _insistently(self, what: str, progress: _Progress, transfer: Callable[[], None]) -> None:
        """As often as it gets further, and ATTEMPTS times where it does not."""
        failures, reached = 0, 0
        while True:
            try:
                return transfer()
            except Broken as broken:
                failures = 0 if progress.shown > reached else failures + 1
                reached = progress.shown
                if failures >= ATTEMPTS:
                    raise WorkError(
                        f"Cannot {what} at {self.address.host}: {broken}",
                        "Run the command again when the connection holds: it goes on where it stopped.",
                    ) from broken
                time.sleep(self._pause * 2**failures)

    @contextmanager
    def _answered(self) -> Iterator[Callable[..., Response]]:
        """What requests raise becomes Broken; the connection's other errors pass."""
        import requests

        try:
            yield self._connection.ask
        except requests.RequestException as error:
            raise Broken(f"the connection broke ({type(error).__name__})") from error


OCTETS = {"Content-Type": "application/octet-stream"}


def _raw(response: Response) -> Iterator[bytes]:
    """What comes over the connection, piece by piece, as it is.

    Raises:
        requests.RequestException: the connection broke.
    """
    import requests
    from urllib3.exceptions import HTTPError

    try:
        while piece := response.raw.read(PIECE, decode_content=False):
            yield piece
    except HTTPError as error:
        raise requests.ConnectionError(error) from error


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _with_digest(place: str, digest: str) -> str:
    return f"{place}{'&' if '?' in place else '?'}digest={digest}"


def _expect(response: Response, *codes: int) -> Response:
    """The response.

    Raises:
        Broken: the registry is busy, or no longer knows the upload.
        UserError: it refuses the user.
        WorkError: it refuses the request.
    """
    code = response.status_code
    if code in codes:
        return response
    if code in (404, 408, 416, 429) or (code >= 500 and code not in (501, 507)):
        raise Broken(f"the registry answered {code} {response.reason}")
    told = _message(response)
    if code in (401, 403):
        raise UserError(
            f"The registry refuses this ({code}{told})",
            "Log in with `docker login HOST`, as one who may do it.",
        )
    raise WorkError(f"The registry refuses this ({code}{told})", "Look at its log, its limits and its disk.")


def _message(response: Response) -> str:
    """What the registry says itself: the first error of its JSON."""
    try:
        told = json.loads(next(response.iter_content(LONGEST_ANSWER), b""))
        return f": {str(told['errors'][0]['message'])[:200]}"
    except (ValueError, LookupError, TypeError, RecursionError):
        return f": {response.reason}" if response.reason else ""
