from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ernie_export.calibrate.record import CalibratedTensor, CalibrationRecord
from ernie_export.errors import UserError
from ernie_export.generate.windows import Windows
from ernie_export.recipe import Calibration

SETTINGS = Calibration(method="gptq", tokens=4096)
TEXT = Windows(np.zeros((8, 512), np.int64), "mine.txt")


def record(*rounded: tuple[str, dict[int, int]]) -> CalibrationRecord:
    tensors = [CalibratedTensor(name=name, error=0.8, tokens=200, rounded=which) for name, which in rounded]
    return CalibrationRecord.of(SETTINGS, TEXT, tensors)


def test_it_is_read_back_and_of_no_calibration_there_is_none(tmp_path: Path) -> None:
    assert CalibrationRecord.read(tmp_path) is None
    wrote = record(("layers.1.experts.down", {2: 5}), ("layers.0.mlp.up.weight", {}))
    (tmp_path / CalibrationRecord.FILE).write_bytes(wrote.render())
    assert CalibrationRecord.read(tmp_path) == wrote
    assert CalibrationRecord.read(tmp_path).render() == wrote.render()  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema_version": 2}', b"\xff", b"[" * 100_000])
def test_what_is_none_is_one_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / CalibrationRecord.FILE).write_bytes(data)
    with pytest.raises(UserError, match=r"calibration\.json is damaged \(") as caught:
        CalibrationRecord.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_summary_names_the_experts_that_were_not_reached() -> None:
    assert record().summary() == "Calibrated by gptq on 4,096 tokens of mine.txt"
    told = record(
        ("layers.10.experts.down", {4: 0}),
        ("layers.2.experts.down", {11: 7, 5: 9}),
        ("layers.2.experts.gate_up", {11: 7, 5: 9}),
        ("layers.2.shared.up.weight", {}),
    ).summary()
    assert told == (
        "Calibrated by gptq on 4,096 tokens of mine.txt; 3 experts that fewer than 128 of them were routed to "
        "are rounded to nearest (layer 2: 5, 11; layer 10: 4)"
    )
