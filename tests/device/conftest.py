from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.write import seal
from ernie_export.device.place import Place
from ernie_export.distribute.policy import Policy
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle

ANYBODY = Policy(unsigned=True, downgrade=True)


def resealed(folder: Path, **report: object) -> Path:
    """A bundle that was changed, under a manifest and a report that say so, as if it had been built like that."""
    manifest, old = Manifest.read(folder), Report.read(folder / Report.FILE)
    for name in (Manifest.FILE, Report.FILE):
        (folder / name).unlink()
    seal(folder, old.model_copy(update=report), manifest.claims)
    return folder


@pytest.fixture(scope="module")
def versions(bundle: BuiltBundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two small bundles: the documents of a real one over a few short files."""
    folder, real = tmp_path_factory.mktemp("versions"), bundle("int4")
    made = folder / "first", folder / "second"
    for number, version in enumerate(made):
        (version / "weights").mkdir(parents=True)
        for name in ("recipe.toml", "config.json", "weights/a.bin", "weights/b.bin"):
            same = name == "weights/a.bin"
            (version / name).write_bytes(name.encode() if same else f"{name} {number}".encode())
        seal(version, Report.read(real / Report.FILE), Manifest.read(real).claims)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "device")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-tamper", action="store_true", help="write docs/tamper.md instead of checking it"
    )
