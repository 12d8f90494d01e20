"""Memory, a stream and graphs of the first GPU, through NVIDIA's CUDA Python (`cuda.bindings.runtime`)."""

from __future__ import annotations

import importlib
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_export.errors import UserError, WorkError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

PACKAGE = "cuda.bindings"
INSTALL = "Install it: python3 -m pip install cuda-bindings."


class Memory:
    """Bytes of the device, zero at first, freed with this object."""

    def __init__(self, device: Device, size: int):
        self.size = size
        self.address = int(device.ask("cudaMalloc", max(size, 1)))
        # Not checked: when Python ends, the driver may be gone before it.
        weakref.finalize(self, device.cuda.cudaFree, self.address)
        device.ask("cudaMemsetAsync", self.address, 0, size, device.stream)


class Device:
    def __init__(self) -> None:
        """
        Raises:
            UserError: CUDA Python is not installed.
            WorkError: there is no GPU that it can use.
        """
        try:
            self.cuda: Any = importlib.import_module(f"{PACKAGE}.runtime")
        except ImportError as error:
            raise UserError(f"CUDA Python does not load here ({error})", INSTALL) from error
        self.stream = int(self.ask("cudaStreamCreate"))
        attribute = self.cuda.cudaDeviceAttr.cudaDevAttrIntegrated
        self.shares_memory: bool = bool(self.ask("cudaDeviceGetAttribute", attribute, 0))
        """With the CPU, as on a Jetson."""

    def ask(self, function: str, *arguments: Any) -> Any:
        """What a function of the runtime gives; WorkError where it gives an error."""
        error, *values = getattr(self.cuda, function)(*arguments)
        if error != self.cuda.cudaError_t.cudaSuccess:
            text = self.cuda.cudaGetErrorString(error)[1]
            raise WorkError(
                f"CUDA fails at {function}: {text.decode() if isinstance(text, bytes) else text}",
                "Look whether `nvidia-smi` lists the GPU, and how much of its memory is free.",
            )
        return values[0] if values else None

    def write(self, address: int, values: Array) -> None:
        """Copy to the device; `values` must live until the next `wait`."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.ask("cudaMemcpyAsync", address, values.ctypes.data, values.nbytes, kind, self.stream)

    def read(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """Copy from the device, of which everything asked before is done then."""
        import numpy as np  # here, so that a kit's program can say that it is missing

        values = np.empty(shape, dtype)
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.ask("cudaMemcpyAsync", values.ctypes.data, address, values.nbytes, kind, self.stream)
        self.wait()
        return values

    def wait(self) -> None:
        self.ask("cudaStreamSynchronize", self.stream)

    def captured(self, launch: Callable[[], None]) -> Graph:
        """What `launch` puts into the stream, as a graph; nothing of it is run."""
        self.ask(
            "cudaStreamBeginCapture",
            self.stream,
            self.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            launch()
        finally:
            graph = self.ask("cudaStreamEndCapture", self.stream)
        return Graph(self, graph)


class Graph:
    """Work of a stream that is launched at once."""

    def __init__(self, device: Device, graph: Any):
        self._device = device
        self._executable = device.ask("cudaGraphInstantiate", graph, 0)
        device.ask("cudaGraphDestroy", graph)
        weakref.finalize(self, device.cuda.cudaGraphExecDestroy, self._executable)

    def launch(self) -> None:
        self._device.ask("cudaGraphLaunch", self._executable, self._device.stream)


class MappedFile:
    """A file of weights where the device reads it: in place if it shares the CPU's memory and takes the
    mapping, else as a copy."""

    def __init__(self, device: Device, path: Path):
        import numpy as np

        data = np.memmap(path, np.uint8, "r")
        self.size = data.nbytes
        if device.shares_memory and (address := _registered(device, data)) is not None:
            self.address = address
            self._holds: Any = data
        else:
            self._holds = Memory(device, data.nbytes)
            self.address = self._holds.address
            device.write(self.address, data)
            device.wait()
            _forget(path)


def _registered(device: Device, data: Array) -> int | None:
    """Where the device sees these mapped bytes; None: it does not take them."""
    cuda = device.cuda
    start = data.ctypes.data
    flags = cuda.cudaHostRegisterMapped | cuda.cudaHostRegisterReadOnly
    success = cuda.cudaError_t.cudaSuccess
    if cuda.cudaHostRegister(start, data.nbytes, flags)[0] != success:
        return None
    weakref.finalize(data, cuda.cudaHostUnregister, start)
    error, address = cuda.cudaHostGetDevicePointer(start, 0)
    return int(address) if error == success else None


def _forget(path: Path) -> None:
    """Its pages, which are on the device now: a Jetson's memory is not to hold them twice."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
