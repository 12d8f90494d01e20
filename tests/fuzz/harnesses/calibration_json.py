"""calibration.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ernie_export.calibrate.record import CalibratedTensor, CalibrationRecord
from ernie_export.recipe import Calibration

JSON = True
TOKENS = (
    b'"settings":',
    b'"method":"gptq"',
    b'"rounded":{"3":7}',
    b'"layers.2.experts.down"',
    b"head.weight",
)


def seeds() -> Iterator[bytes]:
    settings = Calibration(method="gptq", tokens=1024, window=256)
    tensors = [
        CalibratedTensor(name="layers.2.experts.down", error=0.5, tokens=200, rounded={3: 7}),
        CalibratedTensor(name="head.weight", error=0.9, tokens=1024, rounded={}),
    ]
    for some in (tensors, []):
        record = CalibrationRecord(settings=settings, text="mine.txt", sha256="0" * 64, tensors=some)
        yield record.render()


def parse(data: bytes, folder: Path) -> None:
    (folder / CalibrationRecord.FILE).write_bytes(data)
    record = CalibrationRecord.read(folder)
    assert record is not None
    assert "Calibrated by gptq" in record.summary()
