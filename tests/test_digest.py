from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ernie_export import digest


def test_sha256_of_goes_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "PIECE", 7)
    data = bytes(range(100))
    (tmp_path / "file").write_bytes(data)
    steps: list[float] = []

    class Step:
        def advance(self, amount: float = 1) -> None:
            steps.append(amount)

    assert digest.sha256_of(tmp_path / "file", Step()) == hashlib.sha256(data).hexdigest()
    assert steps == [7] * 14 + [2]
