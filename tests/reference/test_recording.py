"""What the reference computes is kept for another export of the same checkpoint, and read only if it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.errors import WorkError
from ernie_export.reference import recording
from ernie_export.reference.layers import LayeredReference
from ernie_export.reference.recording import Kept, LayerRecord, Recording, recorded_bytes

IDS = np.random.default_rng(5).integers(0, 96, (2, 24))


@pytest.fixture
def reference(moe: tuple[Any, Path]) -> LayeredReference:
    return LayeredReference(Checkpoint.open(moe[1]))


def values(record: LayerRecord) -> dict[str, np.ndarray]:
    routing = vars(record.routing) if record.routing else {}
    return {"hidden": record.hidden, **record.states, **routing}


def require_same(got: list[LayerRecord], want: list[LayerRecord]) -> None:
    assert len(got) == len(want)
    for one, other in zip(map(values, got), map(values, want), strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


def test_the_layers_follow_one_another(reference: LayeredReference) -> None:
    recorded = Recording(reference, IDS)
    records = list(recorded.layers())
    assert (recorded.read, recorded.kept_bytes) == (0, 0)
    assert [record.routing is not None for record in records] == [False, True, True]
    hidden = recorded.embedded
    for number, record in enumerate(records):
        with reference.layer(number) as layer:
            np.testing.assert_array_equal(record.hidden, layer.run(hidden).hidden)
        np.testing.assert_allclose(record.states[f"layers.{number}.output"], record.hidden[0], atol=1e-5)
        hidden = record.hidden


def test_what_is_kept_is_read_and_no_layer_is_loaded(
    reference: LayeredReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path / "kept", "f" * 64)
    first = Recording(reference, IDS, kept)
    want = list(first.layers())
    assert 0 < first.kept_bytes <= recorded_bytes(reference, IDS) + 3 * 8192  # names and headers
    monkeypatch.setattr(LayeredReference, "layer", lambda *_: pytest.fail("a layer was loaded"))
    again = Recording(reference, IDS, kept)
    require_same(list(again.layers()), want)
    assert again.read == 3
    assert not list(tmp_path.rglob("*.part"))


def test_a_recording_that_was_killed_goes_on(reference: LayeredReference, tmp_path: Path) -> None:
    kept = Kept(tmp_path, "f" * 64)
    begun = Recording(reference, IDS, kept).layers()
    next(begun)
    begun.close()
    again = Recording(reference, IDS, kept)
    require_same(list(again.layers()), list(Recording(reference, IDS).layers()))
    assert again.read == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
        lambda data: b"",
        lambda data: b"PK\x05\x06" + bytes(18),  # a zip file that holds nothing
    ],
)
def test_a_damaged_file_is_computed_anew(
    reference: LayeredReference, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    kept = Kept(tmp_path, "f" * 64)
    want = list(Recording(reference, IDS, kept).layers())
    (file,) = tmp_path.rglob("layer-001.npz")
    file.write_bytes(damage(file.read_bytes()))
    again = Recording(reference, IDS, kept)
    require_same(list(again.layers()), want)
    assert again.read == 2


def test_another_checkpoint_and_other_windows_are_apart(reference: LayeredReference, tmp_path: Path) -> None:
    recordings = [
        Recording(reference, ids, Kept(tmp_path, fingerprint))
        for ids, fingerprint in ((IDS, "a"), (IDS, "b"), (IDS[:1], "a"), (IDS[:, :-1], "a"))
    ]
    assert len({recorded.folder for recorded in recordings}) == 4


def test_the_longest_unused_go_when_there_would_be_too_much(
    reference: LayeredReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "something else").mkdir()
    old, used = (Recording(reference, IDS, Kept(tmp_path, name)) for name in ("old", "used"))
    for recorded, time in ((old, 1), (used, 2)):
        list(recorded.layers())
        assert recorded.folder is not None
        os.utime(recorded.folder, (time, time))
    monkeypatch.setattr(recording, "MOST", used.kept_bytes + recorded_bytes(reference, IDS))
    new = Recording(reference, IDS, Kept(tmp_path, "new"))
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == {
        used.folder, new.folder, tmp_path / "something else",
    }  # fmt: skip


def test_no_room_is_found_before_the_work(
    reference: LayeredReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(recording.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(WorkError, match="has room for 1 kB"):
        Recording(reference, IDS, Kept(tmp_path, "f"))


def test_a_folder_that_cannot_be_written_is_one_clear_error(
    reference: LayeredReference, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match="cannot hold what the reference computes"):
        Recording(reference, IDS, Kept(tmp_path / "file", "f"))


def test_a_disk_that_fills_half_way_leaves_what_is_whole(
    reference: LayeredReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = Recording(reference, IDS, Kept(tmp_path, "f")).layers()
    next(layers)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(recording.np, "savez", full)
        with pytest.raises(WorkError, match="No space left on device"):
            next(layers)
    assert [path.name for path in tmp_path.rglob("layer*")] == ["layer-000.npz"]
