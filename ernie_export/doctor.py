"""What this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from ernie_export.checkpoint.fingerprints import cache_folder
from ernie_export.engine import found, plugin_library
from ernie_export.engine.compatibility import unfit
from ernie_export.engine.found import driver
from ernie_export.engine.requires import needs_of_gpu, requires_of
from ernie_export.engine.tensorrt_variants import VARIANTS
from ernie_export.errors import UserError
from ernie_export.plan import machine
from ernie_export.target import Target
from ernie_export.versions import numbers


class Needed(NamedTuple):
    """A package that an extra of pyproject.toml brings."""

    name: str
    minimum: str
    to: Literal["build", "run"]


NEEDED = (
    Needed("numba", "0.61", "build"),
    Needed("onnx-ir", "0.1.12", "build"),
    Needed("onnxscript", "0.5.4", "build"),
    Needed("polygraphy", "0.53.6", "build"),
    Needed("torch", "2.9", "build"),
    Needed("transformers", "5.20", "build"),
    Needed("onnx", "1.19", "run"),
    Needed("onnxruntime", "1.31", "run"),
)
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")
"""Either will do; both together overwrite each other's files."""


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True)


class Package(_Found):
    name: str
    version: str | None
    """None: it is not installed."""
    minimum: str
    needed_to: Literal["build", "run"]
    state: Literal["ok", "missing", "too old"]


class Disk(_Found):
    folder: str
    free: int
    """Bytes."""
    writable: bool


class Plugins(_Found):
    """The library of TensorRT plugins for this machine's architecture, driver and GPU."""

    path: str | None
    """None: there is none that suits."""
    sha256: str | None
    cuda: str | None
    """Of the toolkit that compiled it."""
    sm: list[str]
    """Compute capabilities that it is for."""
    problem: str
    """Why there is none, and what mends it; empty where there is."""


class TargetState(_Found):
    name: str
    can_build: bool
    can_run: bool
    missing: list[str]
    remedy: str
    """How to get what is missing; empty where nothing is."""


class Diagnosis(_Found):
    """What `ernie-export doctor --json` prints; sizes in bytes."""

    schema_version: Literal[1] = 1
    python: str
    platform: str
    cores: int
    memory: int
    memory_available: int
    disks: list[Disk]
    """Of the working folder and of the cache."""
    gpus: list[str]
    providers: list[str]
    """What ONNX Runtime can run on."""
    packages: list[Package]
    plugins: Plugins
    targets: list[TargetState]


def diagnose() -> Diagnosis:
    packages = [_package(needed) for needed in NEEDED]
    providers = _providers()
    total, available = machine.memory()
    return Diagnosis(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=total,
        memory_available=available,
        disks=[_disk(Path.cwd()), _disk(cache_folder())],
        gpus=_gpus(),
        providers=providers,
        packages=packages,
        plugins=_plugins(),
        targets=[_target(target, packages, providers) for target in Target.all() if target.is_built_here],
    )


def _target(target: Target, packages: list[Package], providers: list[str]) -> TargetState:
    lacking = [package for package in packages if package.state != "ok"]
    missing = [f"{package.name} is {package.state}" for package in lacking]
    can_run = not any(package.needed_to == "run" for package in lacking)
    remedy = "pip install 'ernie-export[cpu]'" if lacking else ""
    if can_run and "CPUExecutionProvider" not in providers:
        both = all(map(_version, ONNXRUNTIMES))
        missing.append(
            "onnxruntime and onnxruntime-gpu are both installed" if both else "onnxruntime does not load"
        )
        remedy = f"pip uninstall {' '.join(ONNXRUNTIMES)}, then pip install 'ernie-export[cpu]'"
        can_run = False
    can_build = not missing
    if target.needs_gpu and can_run:
        requires = requires_of(target, "", 1)
        if target.runtime in VARIANTS:
            requires = requires.model_copy(update=needs_of_gpu(target, 1))
        here = found.find(requires.module)
        unsuited = list(unfit(target.name, requires, here))
        missing += [each.cause for each in unsuited]
        can_run = not unsuited
        remedy = remedy or (unsuited[0].remedy if unsuited else "")
        if target.runtime in VARIANTS:  # what runs its engines builds them, on a machine without a GPU too
            builder = requires.model_copy(update={"sm": [], "cuda": None})
            can_build = can_build and not any(unfit(target.name, builder, here))
    return TargetState(name=target.name, can_build=can_build, can_run=can_run, missing=missing, remedy=remedy)


def _plugins() -> Plugins:
    cuda, gpu = driver()
    try:
        path, library = plugin_library.find(platform.machine(), cuda, gpu.sm if gpu else None)
    except UserError as error:
        return Plugins(path=None, sha256=None, cuda=None, sm=[], problem=str(error))
    return Plugins(path=str(path), sha256=library.sha256, cuda=library.cuda, sm=library.sm, problem="")


def _package(needed: Needed) -> Package:
    names = ONNXRUNTIMES if needed.name == "onnxruntime" else (needed.name,)
    version = next(filter(None, map(_version, names)), None)
    if version is None:
        state: Literal["ok", "missing", "too old"] = "missing"
    else:
        state = "ok" if numbers(version) >= numbers(needed.minimum) else "too old"
    return Package(
        name=needed.name, version=version, minimum=needed.minimum, needed_to=needed.to, state=state
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _providers() -> list[str]:
    try:
        return list(found.providers())
    except Exception:  # a broken native library raises whatever it likes
        return []


def _disk(folder: Path) -> Disk:
    """Of the nearest folder above that exists: the cache is made when it is first needed."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return Disk(folder=str(folder), free=shutil.disk_usage(there).free, writable=os.access(there, os.W_OK))


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]
