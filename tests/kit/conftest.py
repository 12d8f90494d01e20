from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import making


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has numpy and ONNX Runtime, and nothing else."""
    return making.bare(tmp_path_factory.mktemp("bare") / "venv", "numpy", "onnxruntime")
