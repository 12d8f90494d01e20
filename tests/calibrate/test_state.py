"""What a calibration goes on from: the newest whole state, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ernie_export import atomic
from ernie_export.calibrate.record import CalibratedTensor
from ernie_export.calibrate.state import Journal, Progressed

TENSOR = CalibratedTensor(name="layers.0.mlp.up.weight", error=0.7, tokens=64, rounded={3: 1})
HIDDEN = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def at(layer: int) -> Progressed:
    return Progressed(layer, HIDDEN + layer, [TENSOR] * layer)


def test_the_last_layer_is_kept_and_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "calibration", "key")
    assert journal.read() is None
    for layer in range(3):
        journal.write(at(layer))
    found = Journal(tmp_path / "calibration", "key").read()
    assert found and found.layer == 2 and found.tensors == [TENSOR, TENSOR]
    np.testing.assert_array_equal(found.hidden, HIDDEN + 2)
    assert len(list((tmp_path / "calibration").iterdir())) == 2


def test_another_calibration_begins_anew(tmp_path: Path) -> None:
    Journal(tmp_path, "key").write(at(1))
    assert Journal(tmp_path, "other").read() is None
    # The other one may have written its hidden state over this one's.
    assert Journal(tmp_path, "key").read() is None


@pytest.mark.parametrize("damage", ["state.json", "hidden-001.npy"])
def test_half_a_file_is_none(damage: str, tmp_path: Path) -> None:
    Journal(tmp_path, "key").write(at(1))
    data = (tmp_path / damage).read_bytes()
    (tmp_path / damage).write_bytes(data[: len(data) // 2])
    assert Journal(tmp_path, "key").read() is None


def test_killed_between_the_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, "key")
    journal.write(at(1))

    def killed(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        journal.write(at(2))
    found = journal.read()
    assert found and found.layer == 1
    np.testing.assert_array_equal(found.hidden, HIDDEN + 1)
