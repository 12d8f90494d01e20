"""A weight file that is cut short between a look at it and its reading: one line, never a signal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BuiltBundle

#: Runs the command line; a file is cut short when the named function has been called.
CUT = """
import importlib, os, sys
from ernie_export.cli import main
module, owner, name = sys.argv[1].split(":")
path, size = sys.argv[2], int(sys.argv[3])
owner = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
real = getattr(owner, name)
def cutting(*arguments, **named):
    result = real(*arguments, **named)
    os.truncate(path, size)
    return result
setattr(owner, name, cutting)
sys.exit(main(sys.argv[4:]))
"""


def cut(after: str, path: Path, size: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CUT, after, path, str(size), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def checkpoint(nano: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nano, tmp_path / "model"))


def test_where_weights_are_quantized_on_several_threads(checkpoint: Path, tmp_path: Path) -> None:
    shard, output = checkpoint / "model.safetensors", tmp_path / "bundle"
    ran = cut(
        "ernie_export.streaming::read_layout", shard, 12_000_000,
        "build", checkpoint, "--target", "cpu", "--output", output,
    )  # fmt: skip
    assert ran.returncode == 2 and not output.exists()
    assert (
        ran.stderr == f"error: {shard} changed while it was read. Let nothing write to it, and start again.\n"
    )


def test_where_an_engine_reads_its_weights(bundle: BuiltBundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle("int4"), tmp_path / "bundle"))
    weights = folder / "weights" / "embedding.bin"
    assert os.stat(weights).st_size > 65536
    ran = cut(
        "ernie_export.engine.open::open_engine", weights, 4096,
        "generate", folder, "--prompt", "The interpreter of Python", "--max-tokens", "4",
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr == (
        "error: A file of weights was cut short while it was read, or its disk fails. "
        "Let nothing write to it, check it with `ernie-export verify`, and start again.\n"
    )
