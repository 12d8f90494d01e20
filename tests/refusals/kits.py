"""Kits that are to be built where they cannot be, or are damaged."""

from __future__ import annotations

import os
from dataclasses import replace

from tests.bad_input.attack import flip
from tests.refusals.refusal import ORIN, Place, Refusals, Scene

KITS = Refusals("A kit does not suit the device, or is damaged")
BOARD = replace(ORIN, version="1.32.0")
"""A board with ONNX Runtime."""


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
