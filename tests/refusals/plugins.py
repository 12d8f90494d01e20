"""Libraries of plugins from which no kit can be made, and those that an engine cannot call."""

from __future__ import annotations

import json
from pathlib import Path

from ernie_export.digest import sha256_of
from ernie_export.engine import plugin_library
from tests.refusals.refusal import CPU, ORIN, Place, Refusals, Scene

PLUGINS = Refusals("The library of plugins is another one")
LIBRARY = "plugins/libernie_plugins.so"
ELF = {"x86_64": 62, "aarch64": 183}


def payload(place: Place, **says: object) -> Path:
    """What `make plugins` writes for Jetsons, with other words in library.json."""
    folder = place.root / "bundle" / "linux-aarch64-cuda13"
    folder.mkdir(parents=True)
    library = folder / plugin_library.LIBRARY
    library.write_bytes(elf("aarch64"))
    described = {"cuda": "13.2", "sm": ["8.7", "11.0"], "tensorrt": "10.14.1", "sha256": sha256_of(library)}
    (folder / plugin_library.SAYS).write_text(json.dumps(described | says))
    return folder


def elf(machine: str) -> bytes:
    return (b"\x7fELF".ljust(18, b"\0") + ELF[machine].to_bytes(2, "little")).ljust(64, b"\0")


def found(folder: Path, architecture: str = "aarch64", cuda: str = "13.2", sm: str = "8.7") -> Scene:
    return Scene(folder, CPU, act=lambda: plugin_library.find(architecture, cuda, sm, folder=folder.parent))


@PLUGINS.add("none for the target's processor")
def _(place: Place) -> Scene:
    return found(payload(place), "x86_64")


@PLUGINS.add("none for the target's GPU")
def _(place: Place) -> Scene:
    return found(payload(place), sm="9.0")


@PLUGINS.add("one that a newer CUDA compiled")
def _(place: Place) -> Scene:
    return found(payload(place), cuda="12.6")


@PLUGINS.add("a byte of it changed")
def _(place: Place) -> Scene:
    folder = payload(place)
    (folder / plugin_library.LIBRARY).write_bytes(elf("x86_64"))
    return found(folder)


@PLUGINS.add("it is gone")
def _(place: Place) -> Scene:
    folder = payload(place)
    (folder / plugin_library.LIBRARY).unlink()
    return found(folder)


@PLUGINS.add("what it is, is not told")
def _(place: Place) -> Scene:
    return found(payload(place, sm=[]))


@PLUGINS.add("one for another processor in a kit")
def _(place: Place) -> Scene:
    scene = place.kit("jetson-agx-orin-64gb", ORIN)
    library = scene.bundle / LIBRARY
    library.write_bytes(elf("x86_64"))
    scene.requires(plugin={"path": LIBRARY, "sha256": sha256_of(library)})
    return place.sealed_anew(scene)
