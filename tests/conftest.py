"""What several tests share: the embedded checkpoint, and one bundle a recipe, built once for all workers."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ernie_export.checkpoint import embedded
from ernie_export.recipe import Recipe
from ernie_export.target import Target

# Two workers on two cores: a thread that waits by spinning takes the other worker's core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

BuiltBundle = Callable[[str], Path]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERNIE_EXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def nano() -> Path:
    """The folder of ernie-nano."""
    return embedded.folder()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> BuiltBundle:
    """bundle("int4") is a validated bundle of ernie-nano; tests copy it before they change it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base  # xdist gives each worker its own base

    from ernie_export import pipeline

    def built(recipe: str) -> Path:
        output = shared / f"bundle-{recipe}"
        with (shared / f"bundle-{recipe}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not output.exists():
                result = pipeline.build(nano, Target.find("cpu"), Recipe.find(recipe), output)
                assert result.verdict == "passed", result.report.read_text()
        return output

    return built


@pytest.fixture(scope="session")
def kit(bundle: BuiltBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of ernie-nano for this machine; tests copy it before they change it."""
    from tests.kit.making import HERE, packed

    return packed(bundle("int4"), tmp_path_factory.mktemp("kit") / "nano", HERE[platform.machine()])
