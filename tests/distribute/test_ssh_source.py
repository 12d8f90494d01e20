"""The stream of files, at the end where they arrive."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie_export.bundle.manifest import FileEntry
from ernie_export.distribute.blobs import PARTIAL, Blobs
from ernie_export.distribute.ssh_messages import Want
from ernie_export.distribute.ssh_sender import Parcel
from ernie_export.distribute.ssh_source import SshSource
from ernie_export.errors import WorkError
from ernie_export.progress import Silent


def entry(data: bytes) -> FileEntry:
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())


@contextmanager
def answered(
    folder: Path, files: dict[str, FileEntry], most: int | None = None
) -> Iterator[tuple[SshSource, list[Want]]]:
    """A source whose wishes are fulfilled from `folder`, up to `most` bytes; and those wishes."""
    wants: list[Want] = []
    asked: SimpleQueue[Want | None] = SimpleQueue()
    reading, writing = os.pipe()

    def tell(want: Want) -> None:
        wants.append(want)
        asked.put(want)

    def serve() -> None:
        left, parcel = most, Parcel(folder, files)
        with os.fdopen(writing, "wb") as line:
            while left != 0 and (want := asked.get()):
                for piece in parcel.bytes_of(want):
                    line.write(piece[:left])
                    left = left if left is None else left - len(piece[:left])
                line.flush()

    thread = threading.Thread(target=serve)
    thread.start()
    with os.fdopen(reading, "rb") as incoming:
        try:
            yield SshSource(incoming, tell), wants
        finally:
            asked.put(None)
            thread.join()


def fetch(blobs: Blobs, files: dict[str, FileEntry], source: SshSource) -> int:
    with Silent().step("") as step:
        return blobs.fetch(files, source, step)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(st.binary(max_size=300), min_size=1, max_size=12, unique=True),
    kept=st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=12, max_size=12),
)
def test_what_is_there_is_kept_if_it_is_good(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], kept: list[tuple[int, bool]]
) -> None:
    """Of each file a beginning may be there, right or damaged."""
    folder = tmp_path_factory.mktemp("files")
    here, files, travels = Blobs(folder / "blobs"), {}, 0
    for number, (data, (length, damaged)) in enumerate(zip(contents, kept, strict=False)):
        (folder / str(number)).write_bytes(data)
        files[str(number)] = listed = entry(data)
        beginning = data[:length]
        travels += len(data) - len(beginning)
        if beginning and damaged:
            beginning = bytes([beginning[0] ^ 1]) + beginning[1:]
            travels += len(data)
        (here.folder / f"{listed.sha256}{PARTIAL}").write_bytes(beginning)
    with answered(folder, files) as (source, wants):
        assert (
            fetch(here, files, source) == travels == sum(files[want.path].size - want.start for want in wants)
        )
    assert {path.name: path.read_bytes() for path in here.folder.iterdir()} == {
        hashlib.sha256(data).hexdigest(): data for data in contents
    }


def test_a_cut_connection_keeps_what_came(tmp_path: Path) -> None:
    data = {str(number): os.urandom(1 << 20) for number in range(6)}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    files = {name: entry(content) for name, content in data.items()}
    blobs = Blobs(tmp_path / "blobs")
    with (
        answered(tmp_path, files, most=2_500_000) as (source, _),
        pytest.raises(WorkError, match="connection ended"),
    ):
        fetch(blobs, files, source)
    with answered(tmp_path, files) as (source, _):
        assert fetch(blobs, files, source) == sum(map(len, data.values())) - 2_500_000
    assert all(blobs.path(each).read_bytes() == data[name] for name, each in files.items())


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"changed")
    files = {"a": entry(b"as once")}
    with (
        answered(tmp_path, files) as (source, _),
        pytest.raises(WorkError, match="did not arrive as the manifest"),
    ):
        fetch(Blobs(tmp_path / "blobs"), files, source)
    assert not list((tmp_path / "blobs").iterdir())


def test_a_disk_that_fails_is_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that the others, which wait for their turn, did not get one."""
    files = {}
    for number in range(8):
        data = os.urandom(1000)
        (tmp_path / str(number)).write_bytes(data)
        files[str(number)] = entry(data)
    pieces, full = SshSource._pieces, OSError(28, "No space left on device")

    def failing(self: SshSource, size: int) -> Iterator[bytes]:
        yield next(pieces(self, size // 2))
        raise full

    monkeypatch.setattr(SshSource, "_pieces", failing)
    with answered(tmp_path, files) as (source, _), pytest.raises(OSError, match="No space left"):
        fetch(Blobs(tmp_path / "blobs"), files, source)
