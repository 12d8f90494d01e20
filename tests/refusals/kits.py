"""Kits that are to be built where they cannot be, or are damaged."""

from __future__ import annotations

import os
from dataclasses import replace

from ernie_export.engine.found import Gpu
from tests.bad_input.attack import flip
from tests.refusals.refusal import ORIN, Place, Refusals, Scene

KITS = Refusals("A kit does not suit the device, or is damaged")
BOARD = replace(ORIN, version="1.32.0")
"""A board with ONNX Runtime."""
THOR = replace(ORIN, version="10.13.3.9", gpu=Gpu("NVIDIA Thor", "11.0", 128 << 30, True))


@KITS.add("a board without ONNX Runtime")
def _(place: Place) -> Scene:
    return place.kit("arm64", BOARD).on(version=None, problem="it is not installed")


@KITS.add("a board whose ONNX Runtime is too old")
def _(place: Place) -> Scene:
    return place.kit("arm64", BOARD).on(version="1.20.1")


@KITS.add("a byte of the kit changed")
def _(place: Place) -> Scene:
    scene = place.kit("arm64", BOARD)
    flip(scene.bundle / "weights" / "layer-001.bin", 5000)
    return scene


@KITS.add("a byte of its program changed")
def _(place: Place) -> Scene:
    scene = place.kit("arm64", BOARD)
    flip(scene.bundle / "kit.pyz", 5000)
    return scene


@KITS.add("a file of the kit missing")
def _(place: Place) -> Scene:
    scene = place.kit("arm64", BOARD)
    (scene.bundle / "selfcheck.safetensors").unlink()
    return scene


@KITS.add("a file of the kit cut off")
def _(place: Place) -> Scene:
    scene = place.kit("arm64", BOARD)
    os.truncate(scene.bundle / "weights" / "layer-003.bin", 1000)
    return scene


@KITS.add("a bundle in place of a kit")
def _(place: Place) -> Scene:
    return replace(place.cpu(), kit=True)


@KITS.add("no kit")
def _(place: Place) -> Scene:
    (place.root / "bundle").mkdir()
    return Scene(place.root / "bundle", BOARD, kit=True)


@KITS.add("a kit for Thor on an Orin")
def _(place: Place) -> Scene:
    return place.kit("jetson-thor-t5000", THOR).on(gpu=ORIN.gpu)


@KITS.add("a board with a TensorRT that no JetPack of its target has")
def _(place: Place) -> Scene:
    return place.kit("jetson-agx-orin-64gb", ORIN).on(version="10.13.3.9")


@KITS.add("its plan changed")
def _(place: Place) -> Scene:
    scene = place.kit("arm64", BOARD)
    plan = scene.bundle / "kit.json"
    plan.write_text(plan.read_text().replace('"tokens":', '"tokenz":'))
    return scene


@KITS.add("a graph of it changed")
def _(place: Place) -> Scene:
    scene = place.kit("jetson-agx-orin-64gb", ORIN)
    flip(scene.bundle / "kit" / "decode.onnx", 5000)
    return scene


@KITS.add("its plugins changed")
def _(place: Place) -> Scene:
    scene = place.kit("jetson-agx-orin-64gb", ORIN)
    flip(scene.bundle / "plugins" / "libernie_plugins.so", 3)
    return scene


@KITS.add("its report was edited")
def _(place: Place) -> Scene:
    scene = place.kit("arm64", BOARD)
    report = scene.bundle / "report.json"
    report.write_text(report.read_text().replace("int4", "int8"))
    return scene


@KITS.add("another kit's report")
def _(place: Place) -> Scene:
    scene = place.kit("arm64", BOARD)
    manifest = scene.bundle / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    return scene


@KITS.add("too little memory")
def _(place: Place) -> Scene:
    return replace(place.kit("arm64", BOARD), memory=100 << 20)


@KITS.add("too little room on the disk")
def _(place: Place) -> Scene:
    return replace(place.kit("arm64", BOARD), disk=1 << 20)
