from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.errors import UserError
from ernie_export.progress import Silent

NORM = "model.norm.weight"


class Counting:
    """A Progress that adds up what it is told."""

    def __init__(self) -> None:
        self.total: float | None = None
        self.done = 0.0

    @contextmanager
    def step(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Counting]:
        self.total = total
        yield self

    def advance(self, amount: float = 1) -> None:
        self.done += amount


def settle(folder: Path) -> Path:
    """Make the files an hour old: what was just written is not remembered."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    return folder


def flip_last_byte(path: Path) -> None:
    """Change a weight and nothing that `stat` shows."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_same_weights_have_the_same_fingerprint_however_they_are_split(
    saved_by_transformers: dict[str, Path],
) -> None:
    single, sharded, half = (
        Checkpoint.open(saved_by_transformers[form]).fingerprint(Silent())
        for form in ("fp32", "sharded", "fp16")
    )
    assert single == sharded != half


def test_one_changed_bit_changes_it(make: Callable[..., Any]) -> None:
    folder = make().write()
    before = Checkpoint.open(folder).fingerprint(Silent())
    flip_last_byte(folder / "model.safetensors")
    assert Checkpoint.open(folder).fingerprint(Silent()) != before


def test_the_config_is_part_of_it(make: Callable[..., Any]) -> None:
    first = Checkpoint.open(make("a").write())
    second = Checkpoint.open(make("b", rope_theta=10000.0).write())
    assert first.digest(NORM) == second.digest(NORM)
    assert first.fingerprint(Silent()) != second.fingerprint(Silent())


def test_every_byte_is_read_once_and_reported(make: Callable[..., Any]) -> None:
    checkpoint = Checkpoint.open(make().write(shards=2))
    whole = sum(info.nbytes for info in checkpoint.tensors.values())
    already = sum(checkpoint.tensors[name].nbytes for name in checkpoint.sources("model.layers.1"))
    for name in checkpoint.sources("model.layers.1"):
        checkpoint.digest(name)
    progress = Counting()
    fingerprint = checkpoint.fingerprint(progress)
    assert progress.total == progress.done == whole - already
    again = Counting()
    assert checkpoint.fingerprint(again) == fingerprint
    assert again.total is None


def test_a_second_run_reads_no_weights(make: Callable[..., Any]) -> None:
    folder = settle(make().write(shards=2))
    first = Checkpoint.open(folder)
    fingerprint, digest = first.fingerprint(Silent()), first.digest(NORM)
    for shard in folder.glob("*.safetensors"):
        flip_last_byte(shard)  # would be noticed by whoever reads the weights
    second = Checkpoint.open(folder)
    assert second.digest(NORM) == digest
    progress = Counting()
    assert second.fingerprint(progress) == fingerprint
    assert progress.total is None


def test_digests_made_while_streaming_are_remembered_too(make: Callable[..., Any]) -> None:
    checkpoint = Checkpoint.open(settle(make().write()))
    for name in checkpoint.tensors:
        checkpoint.digest(name)
    checkpoint.fingerprint(Silent())
    assert Checkpoint.open(checkpoint.path).digests == checkpoint.digests


@pytest.mark.parametrize("what", ["time", "size", "inode", "config"])
def test_a_touched_file_is_read_again(make: Callable[..., Any], what: str) -> None:
    folder = settle(make().write())
    weights = folder / "model.safetensors"
    first = Checkpoint.open(folder)
    first.fingerprint(Silent())
    identity = first.identity()
    if what == "time":
        os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    elif what == "size":
        text = weights.read_bytes()  # spaces after the header
        length = int.from_bytes(text[:8], "little")
        weights.write_bytes(
            (length + 8).to_bytes(8, "little") + text[8 : 8 + length] + b" " * 8 + text[8 + length :]
        )
    elif what == "inode":
        copy = folder / "copy"
        copy.write_bytes(weights.read_bytes())
        os.utime(copy, ns=(0, weights.stat().st_mtime_ns))
        copy.replace(weights)
    else:
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    second = Checkpoint.open(folder)
    assert second.identity() != identity
    assert second.digests == {}


def test_what_was_just_written_is_not_remembered(make: Callable[..., Any], cache: Path) -> None:
    checkpoint = Checkpoint.open(make().write())
    os.utime(checkpoint.path / "model.safetensors")
    Checkpoint.open(checkpoint.path).fingerprint(Silent())
    assert not list(cache.rglob("*.json"))


def test_a_checkpoint_that_changes_while_it_is_read(make: Callable[..., Any], cache: Path) -> None:
    folder = settle(make().write(shards=2))
    checkpoint = Checkpoint.open(folder)

    class Meddling(Counting):
        def advance(self, amount: float = 1) -> None:
            os.utime(folder / "model-00002-of-00002.safetensors")

    with pytest.raises(UserError, match=r"changed while it was read\. Let nothing write to it"):
        checkpoint.fingerprint(Meddling())
    assert not list(cache.rglob("*.json"))


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_file_that_vanishes_while_it_is_read(make: Callable[..., Any], lost: str) -> None:
    checkpoint = Checkpoint.open(make().write())
    (checkpoint.path / lost).unlink()
    with pytest.raises(UserError, match="changed while it was read"):
        checkpoint.fingerprint(Silent())


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff", b'{"digests": 3, "sha256": ""}'])
def test_a_damaged_memory_is_made_anew(make: Callable[..., Any], cache: Path, damage: bytes) -> None:
    folder = settle(make().write())
    fingerprint = Checkpoint.open(folder).fingerprint(Silent())
    [remembered] = cache.rglob("*.json")
    whole = remembered.read_bytes()
    for content in (damage, whole.replace(b'": "a', b'": "b', 1), whole[:-3]):
        assert content != whole
        remembered.write_bytes(content)
        checkpoint = Checkpoint.open(folder)
        assert checkpoint.digests == {}
        assert checkpoint.fingerprint(Silent()) == fingerprint
        assert remembered.read_bytes() == whole


def test_a_cache_folder_that_cannot_be_written(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settle(make().write())
    monkeypatch.setenv(
        "ERNIE_EXPORT_CACHE", str(folder / "config.json")
    )  # a file: no folder can be made in it
    assert Checkpoint.open(folder).fingerprint(Silent())
    assert Checkpoint.open(folder).digests == {}
