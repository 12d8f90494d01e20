"""What this machine has to open an engine with: the runtime's version, the GPU, the driver."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path

DRIVER = "libcuda.so.1"
DEVICE_TREE = Path("/proc/device-tree")
#: Packages beside ONNX Runtime that bring it a provider, by the provider.
PACKAGES = {"NvTensorRTRTXExecutionProvider": "onnxruntime_ep_nv_tensorrt_rtx"}
#: CUdevice_attribute of cuda.h.
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18


@dataclass(frozen=True)
class Gpu:
    name: str
    sm: str
    """Compute capability."""
    memory: int
    """Bytes in all."""
    shares_memory: bool = False
    """With the CPU."""


@dataclass(frozen=True)
class Found:
    architecture: str
    """Of the CPU."""
    version: str | None
    """Of the module that was asked for; None: it does not load."""
    problem: str
    """Why it does not; empty where it does."""
    cuda: str | None
    """The newest version that the driver takes; None: there is no driver."""
    gpu: Gpu | None
    device: str
    """What a board calls itself: "NVIDIA Jetson AGX Orin Developer Kit"; empty where none tells."""
    providers: tuple[str, ...] = ()
    """Of ONNX Runtime, if that was asked for: its own, and those that packages beside it bring."""


def find(module: str) -> Found:
    version, problem = version_of(module)
    cuda, gpu = driver()
    offered = providers() if module == "onnxruntime" and version else ()
    return Found(platform.machine(), version, problem, cuda, gpu, board(), offered)


def providers() -> tuple[str, ...]:
    """Of ONNX Runtime, which loads here; a package is looked for and not loaded."""
    own: list[str] = getattr(importlib.import_module("onnxruntime"), "get_available_providers", list)()
    return (*own, *(name for name, package in PACKAGES.items() if importlib.util.find_spec(package)))


def version_of(module: str) -> tuple[str | None, str]:
    """Of a module as Python loads it, or None and why it does not: a broken library raises whatever it likes."""
    try:
        version = getattr(importlib.import_module(module), "__version__", None)
    except ModuleNotFoundError as error:
        return None, "it is not installed" if error.name == module else f"it needs {error.name}"
    except Exception as error:
        return None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (str(version), "") if version else (None, "what is installed under its name is not whole")


def driver(library: str = DRIVER) -> tuple[str | None, Gpu | None]:
    """The CUDA version that the driver takes, and its first GPU; asked of the driver's own library.

    nvidia-smi is not on every Jetson; this library is wherever a kernel can run.
    """
    try:
        cuda = ctypes.CDLL(library)
        number = ctypes.c_int()
        if cuda.cuDriverGetVersion(ctypes.byref(number)):
            return None, None
        version = f"{number.value // 1000}.{number.value % 1000 // 10}"
        return version, _gpu(cuda)
    except (OSError, AttributeError):  # there is none, or it is something else
        return None, None


def _gpu(cuda: ctypes.CDLL) -> Gpu | None:
    device, value, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    told = []
    for attribute in (_MAJOR, _MINOR, _INTEGRATED):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        told.append(value.value)
    if cuda.cuDeviceGetName(name, len(name), device) or cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device):
        return None
    major, minor, integrated = told
    return Gpu(name.value.decode(errors="replace"), f"{major}.{minor}", size.value, bool(integrated))


def free_on_gpu(library: str = DRIVER) -> int | None:
    """Bytes of the first GPU that nobody has; None where no driver tells.

    It is asked in the device's primary context, which runtimes use, and which is made where there is none.
    """
    try:
        cuda = ctypes.CDLL(library)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        free, size = ctypes.c_size_t(), ctypes.c_size_t()
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
            return None
        if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
            return None
        try:
            if cuda.cuCtxPushCurrent_v2(context):
                return None
            failed = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(size))
            cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
            return None if failed else free.value
        finally:
            cuda.cuDevicePrimaryCtxRelease_v2(device)
    except (OSError, AttributeError):  # there is none, or it is something else
        return None


def board(tree: Path = DEVICE_TREE) -> str:
    try:
        return (tree / "model").read_text(errors="replace").rstrip("\0").strip()
    except OSError:
        return ""
