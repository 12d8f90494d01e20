"""Whole engines on machines that they are not for."""

from __future__ import annotations

from ernie_export.engine.found import Gpu
from ernie_export.stack import Stack
from tests.refusals.refusal import Place, Refusals, Scene

RUNTIMES = Refusals("The runtime is another one")
GPUS = Refusals("The GPU, its driver or the CPU is another one")
LIMITS = Refusals("More than the engine was built for")


@RUNTIMES.add("no TensorRT on a Jetson")
def _(place: Place) -> Scene:
    return place.orin().on(version=None, problem="it is not installed")


@RUNTIMES.add("TensorRT without its libraries")
def _(place: Place) -> Scene:
    return place.orin().on(version=None, problem="libnvinfer.so.10: cannot open shared object file")


@RUNTIMES.add("JetPack 6.2 under an engine of JetPack 7.2")
def _(place: Place) -> Scene:
    planned = {"10.3": f"JetPack 6.2 is planned: {Stack.find('JetPack 6.2').planned}"}
    return place.orin().requires(versions=["10.16", "11.4"], planned=planned).on(version="10.3.0")


@RUNTIMES.add("TensorRT 10.13 under an engine of 10.16")
def _(place: Place) -> Scene:
    return place.orin().on(version="10.13.3.9")


@RUNTIMES.add("another build of the same TensorRT")
def _(place: Place) -> Scene:
    return place.server().on(version="11.4.1.2")


@RUNTIMES.add("TensorRT 10 on a server")
def _(place: Place) -> Scene:
    return place.server().requires(versions=["11"]).on(version="10.16.0.72")


@RUNTIMES.add("ONNX Runtime too old")
def _(place: Place) -> Scene:
    return place.cpu().on(version="1.30.2")


@RUNTIMES.add("ONNX Runtime 2")
def _(place: Place) -> Scene:
    return place.cpu().on(version="2.0.0")


@RUNTIMES.add("no ONNX Runtime")
def _(place: Place) -> Scene:
    return place.cpu().on(version=None, problem="it is not installed")


@RUNTIMES.add("onnxruntime and onnxruntime-gpu over each other")
def _(place: Place) -> Scene:
    return place.cpu().on(version=None, problem="what is installed under its name is not whole")


@RUNTIMES.add("an onnxruntime without CUDA under a bundle for it")
def _(place: Place) -> Scene:
    return place.any_gpu("ONNX Runtime with CUDA")


@RUNTIMES.add("no package with the provider for RTX cards")
def _(place: Place) -> Scene:
    return place.any_gpu("ONNX Runtime with TensorRT for RTX")


@GPUS.add("an engine for a Jetson on a server")
def _(place: Place) -> Scene:
    return place.orin().on(architecture="x86_64")


@GPUS.add("an engine for a server on a Jetson")
def _(place: Place) -> Scene:
    return place.server().on(architecture="aarch64")


@GPUS.add("an engine for Orin on Thor")
def _(place: Place) -> Scene:
    return place.orin().on(gpu=Gpu("NVIDIA Thor", "11.0", 128 << 30))


@GPUS.add("an engine for an H100 on an A100")
def _(place: Place) -> Scene:
    return place.server().on(gpu=Gpu("NVIDIA A100-SXM4-80GB", "8.0", 80 << 30))


@GPUS.add("an engine for two cards on a third")
def _(place: Place) -> Scene:
    return place.server().requires(sm=["8.6", "8.9"]).on(gpu=Gpu("NVIDIA GeForce RTX 5090", "12.0", 32 << 30))


@GPUS.add("a Jetson without its driver")
def _(place: Place) -> Scene:
    return place.orin().on(cuda=None, gpu=None)


@GPUS.add("a container without its GPU")
def _(place: Place) -> Scene:
    return place.server().on(cuda=None, gpu=None)


@GPUS.add("a driver that finds no GPU")
def _(place: Place) -> Scene:
    return place.server().on(gpu=None)


@GPUS.add("a Jetson whose driver is too old")
def _(place: Place) -> Scene:
    return place.orin().on(cuda="12.6")


@GPUS.add("a server whose driver is too old")
def _(place: Place) -> Scene:
    return place.server().on(cuda="12.8")


@LIMITS.add("more tokens than the profile takes")
def _(place: Place) -> Scene:
    scene = place.cpu()
    return Scene(scene.bundle, scene.here, feed=(1, 1 << 20))


@LIMITS.add("more rows than the profile takes")
def _(place: Place) -> Scene:
    scene = place.cpu().requires(batch=4)
    return Scene(scene.bundle, scene.here, feed=(5, 512))
