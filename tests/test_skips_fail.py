"""Where nothing may be missing, a skip is a failure, in a test as in a whole file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {
    "test": "import pytest\ndef test_a(): pytest.skip('no device')\n",
    "mark": "import pytest\n@pytest.mark.skip(reason='no device')\ndef test_a(): pass\n",
    "file": "import pytest\npytest.skip('no device', allow_module_level=True)\n",
}


def run(folder: Path, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_a.py").write_text(source + "def test_b(): pass\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        "/dev/null",
        "-p",
        "no:cacheprovider",
        *flags,
        str(folder),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("kind", TESTS)
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_skip_fails_with_its_reason(tmp_path: Path, kind: str, workers: tuple[str, ...]) -> None:
    done = run(tmp_path, TESTS[kind], "-p", "tests.skips_fail", *workers)
    assert done.returncode not in (0, 5)
    assert "no device" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]


def test_without_the_plugin_a_skip_passes(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS["test"])
    assert done.returncode == 0 and "1 passed, 1 skipped" in done.stdout


def test_an_expected_failure_stays_one(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.xfail\ndef test_a(): assert False\n"
    done = run(tmp_path, source, "-p", "tests.skips_fail")
    assert done.returncode == 0 and "1 xfailed" in done.stdout
