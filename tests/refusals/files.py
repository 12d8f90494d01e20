"""Engines, plugins and bundles that were damaged, mixed or made up."""

from __future__ import annotations

import json
import os

from ernie_export.bundle.manifest import Manifest
from tests.refusals.refusal import Place, Refusals, Scene

BINARIES = Refusals("The engine or its plugin is damaged")
DOCUMENTS = Refusals("The bundle is not one piece")
PLUGIN, ENGINE = "plugins/libernie_plugins.so", "engine.plan"


@BINARIES.add("a plugin of another version")
def _(place: Place) -> Scene:
    scene = place.orin()
    (scene.bundle / PLUGIN).write_bytes(b"plugin of yesterday" * 100)
    return scene


@BINARIES.add("no plugin")
def _(place: Place) -> Scene:
    scene = place.orin()
    (scene.bundle / PLUGIN).unlink()
    return scene


@BINARIES.add("a pipe in place of the plugin's folder")
def _(place: Place) -> Scene:
    scene = place.orin()
    (scene.bundle / PLUGIN).unlink()
    (scene.bundle / PLUGIN).parent.rmdir()
    os.mkfifo((scene.bundle / PLUGIN).parent)
    return scene.requires(plugin={"path": "plugins", "sha256": "0" * 64})


@BINARIES.add("an engine cut off")
def _(place: Place) -> Scene:
    scene = place.orin()
    os.truncate(scene.bundle / ENGINE, 100)
    return scene


@BINARIES.add("an empty engine")
def _(place: Place) -> Scene:
    scene = place.orin()
    os.truncate(scene.bundle / ENGINE, 0)
    return scene


@BINARIES.add("no engine")
def _(place: Place) -> Scene:
    scene = place.server()
    (scene.bundle / ENGINE).unlink()
    return scene


@DOCUMENTS.add("an engine with the weights of another checkpoint")
def _(place: Place) -> Scene:
    scene = place.orin()
    manifest = json.loads((scene.bundle / Manifest.FILE).read_bytes())
    manifest["checkpoint"]["fingerprint"] = "f" * 64
    (scene.bundle / Manifest.FILE).write_text(json.dumps(manifest))
    return scene


@DOCUMENTS.add("a runtime that does not exist")
def _(place: Place) -> Scene:
    return place.cpu().info(runtime="tensorrt-2")


@DOCUMENTS.add("a module that does not exist")
def _(place: Place) -> Scene:
    return place.cpu().requires(module="os")


@DOCUMENTS.add("a plugin that lies outside")
def _(place: Place) -> Scene:
    return place.orin().requires(plugin={"path": "../libevil.so", "sha256": "0" * 64})


@DOCUMENTS.add("a version that is none")
def _(place: Place) -> Scene:
    return place.orin().requires(versions=["ten"])


@DOCUMENTS.add("no checkpoint")
def _(place: Place) -> Scene:
    return place.orin().requires(checkpoint=None)
