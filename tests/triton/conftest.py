"""Triton's schema of a model's configuration."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from plugins import fetch


@pytest.fixture(scope="session")
def schema() -> Any:
    """What protoc made of Triton's model_config.proto, as its own client brings it."""
    path = fetch.folder("triton-schema") / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
