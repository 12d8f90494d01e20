"""Kits that are made from a bundle in a second, and what runs them: Python with numpy and ONNX Runtime alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.write import seal
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.digest import sha256_of
from ernie_export.engine import plugin_library, weight_map
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.requires import needs_of_gpu, requires_of
from ernie_export.engine.tensorrt_variants import VARIANTS
from ernie_export.graph.weights import read_layout
from ernie_export.kit import pack
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate.report import Report

HERE = {"x86_64": "x86-64", "aarch64": "arm64"}
ARM64 = Path(__file__).parents[2] / "build" / "arm64" / "python3"


def packed(bundle: Path, folder: Path, target: str) -> Path:
    """The kit that `build --target` would have made in the place of this bundle for the CPU."""
    shutil.copytree(bundle, folder)
    manifest, report, purpose = Manifest.read(folder), Report.read(folder / Report.FILE), Target.find(target)
    for name in UNLISTED:
        (folder / name).unlink(missing_ok=True)
    info = EngineInfo.read(folder)
    requires = requires_of(purpose, manifest.checkpoint.fingerprint, info.max_context)
    recipe = Recipe.read(folder / "recipe.toml")
    if purpose.runtime in VARIANTS:
        requires = requires.model_copy(update=needs_of_gpu(purpose, recipe.batch))
        (folder / weight_map.FILE).parent.mkdir()
        (folder / weight_map.FILE).write_bytes(weight_map.rendered(read_layout(folder / info.graph)))
    info = info.model_copy(update={"requires": requires, "runtime": purpose.runtime})
    (folder / EngineInfo.FILE).write_bytes(info.to_bytes())
    made = pack.files(folder, info, ErnieConfig.read(folder), recipe, purpose)
    for name, data in list(made):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    seal(folder, report.model_copy(update={"target": target}), manifest.claims)
    return folder


def library(folder: Path, architecture: str = "x86_64", sm: str = "9.0") -> Path:
    """What `make plugins` would have put there, for the double of TensorRT."""
    place = folder / f"linux-{architecture}-cuda13"
    place.mkdir(parents=True)
    path = place / plugin_library.LIBRARY
    path.write_bytes(b"\x7fELF, of the tests")
    says = {"cuda": "13.2", "sm": [sm], "tensorrt": "10.14.1", "sha256": sha256_of(path)}
    (place / plugin_library.SAYS).write_text(json.dumps(says))
    return folder


def bare(folder: Path, *packages: str) -> Path:
    """A Python that has nothing but these packages of this one's."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for package in packages:
        found = find_spec(package)
        assert found and found.origin
        installed = Path(found.origin).parent
        for each in (installed, installed.with_name(f"{package}.libs")):
            if each.exists():
                (site / each.name).symlink_to(each)
    return folder / "bin" / "python"


def environment() -> dict[str, str]:
    """Without the way to ernie-export that the tests have."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(python: Path, kit: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """kit.pyz, as a person on the device starts it; `more`: of the environment."""
    command = [str(python), str(kit / "kit.pyz"), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment() | more, cwd=kit.parent, errors="replace"
    )
