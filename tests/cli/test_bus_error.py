"""A weight file of a bundle that is cut short while an engine reads it: one line, never a signal.

Of a checkpoint: tests/bad_input/machine.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import BuiltBundle


def test_where_an_engine_reads_its_weights(bundle: BuiltBundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle("int4"), tmp_path / "bundle"))
    weights = folder / "weights" / "embedding.bin"
    assert weights.stat().st_size > 65536
    command = [
        sys.executable, "-m", "tests.bad_input.meddling",
        "cut", weights, "4096", "ernie_export.engine.open:open_engine",
        "generate", folder, "--prompt", "The interpreter of Python", "--max-tokens", "4",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == (
        "error: A file of weights was cut short while it was read, or its disk fails. "
        "Let nothing write to it, check it with `ernie-export verify`, and start again.\n"
    )
