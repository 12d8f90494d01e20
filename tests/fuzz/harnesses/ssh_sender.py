"""What who deploys says to a device: an offer, and then bytes, which are installed if they are what was offered."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import FileEntry
from ernie_export.bundle.verify import verify
from ernie_export.device import install
from ernie_export.device.place import Place
from ernie_export.device.receive import Line, receive
from ernie_export.distribute import blobs
from ernie_export.distribute.artifact import DOCUMENTS
from ernie_export.distribute.policy import Policy
from ernie_export.distribute.ssh_messages import Offer
from ernie_export.errors import UserError, WorkError
from tests.fuzz.harnesses import verify_folder

JSON = False
TOKENS = (b'"kind":"offer"', b'"documents":{', b'"manifest.json":', b'"report.json":', b'"model.sig":', b'"size":',
          b'"sha256":"', b'"observe":', b'"name":"', b"\n", b"1e999", b"NaN", b"-1", b"9" * 20)  # fmt: skip
POLICY = Policy(unsigned=True)


def seeds() -> Iterator[bytes]:
    """A whole conversation, in the order in which one thread asks for the files; one that ends; one without bytes."""
    import hashlib

    bundle = verify_folder.bundle()
    entries = {
        path: FileEntry(size=len(bundle[path]), sha256=hashlib.sha256(bundle[path]).hexdigest())
        for path in DOCUMENTS
    }
    offer = Offer(name="here", documents=entries).line()
    listed = sorted(path for path in bundle if path not in UNLISTED)
    wanted = b"".join(bundle[path] for path in (*DOCUMENTS, *listed))
    yield offer + wanted
    yield offer + wanted[:-100]
    yield Offer(name="here", documents=entries, observe=5).line()


def parse(data: bytes, folder: Path) -> None:
    root = folder / "device"
    shutil.rmtree(root, ignore_errors=True)
    place, line = Place(root), Line(io.BytesIO(data), io.BytesIO())
    try:
        with (
            patch.object(blobs, "AT_ONCE", 1),
            patch.object(install, "require_suited"),
            patch.object(install, "try_out", return_value=None),
        ):
            receive(line, place, lambda: (POLICY, None))
    except (UserError, WorkError):
        assert place.active() is None and not list(place.generations.glob("*"))
        raise
    else:
        assert not verify(place.current / "bundle")
    finally:
        assert set(path.name for path in folder.iterdir()) <= {"device"}
        names = {path.name.removesuffix(blobs.PARTIAL) for path in (root / "blobs").glob("*")}
        assert all(len(name) == 64 and int(name, 16) >= 0 for name in names)
