from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.device.place import Place
from ernie_export.distribute.policy import Policy

ANYBODY = Policy(unsigned=True)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "device")
