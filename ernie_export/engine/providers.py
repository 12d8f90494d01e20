"""What ONNX Runtime computes on: its providers, the options that each is opened with, and where their buffers lie."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ernie_export.engine.found import PACKAGES
from ernie_export.errors import WorkError

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Provider:
    name: str
    device: str = "cpu"
    """Where its buffers lie, in ONNX Runtime's word: `cuda` is NVIDIA's GPU, whichever provider runs on it."""
    options: dict[str, str] = field(default_factory=dict)
    package: str = ""
    """The Python package that brings it; empty: onnxruntime itself."""

    def add_to(self, options: onnxruntime.SessionOptions) -> list[tuple[str, dict[str, str]]]:
        """Make a session run on it: what `InferenceSession` is given as its providers.

        Raises:
            WorkError: its package is there, and finds no GPU to run on.
        """
        import onnxruntime

        if self.name == CPU.name:
            return [(self.name, self.options)]
        if not self.package:
            onnxruntime.preload_dlls()  # CUDA's libraries, where they are Python packages
            return [(self.name, self.options), (CPU.name, CPU.options)]
        package = importlib.import_module(self.package)
        if not any(device.ep_name == self.name for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(self.name, package.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == self.name]
        if not devices:
            raise WorkError(
                f"{self.name} of {self.package} finds no GPU that it runs on",
                "It runs on RTX cards from Ampere on: look whether `nvidia-smi` lists one.",
            )
        options.add_provider_for_devices(devices[:1], self.options)
        return []


CPU = Provider("CPUExecutionProvider")
#: TF32 keeps ten bits of a product's factors, and the routers are fp32; the arena grows by what is asked for, not by
#: doubling, since a bundle's weights are most of what it will ever hold.
CUDA = Provider(
    "CUDAExecutionProvider",
    device="cuda",
    options={"device_id": "0", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"},
)
RTX = Provider(
    "NvTensorRTRTXExecutionProvider",
    device="cuda",
    package=PACKAGES["NvTensorRTRTXExecutionProvider"],
)
#: By the runtime that `engine.json` names.
OF_RUNTIMES = {"onnxruntime-cpu": CPU, "onnxruntime-cuda": CUDA, "onnxruntime-rtx": RTX}
#: Runtimes that compute in fp16, on a GPU.
ON_GPUS = tuple(runtime for runtime, provider in OF_RUNTIMES.items() if provider is not CPU)


def buffer(provider: Provider, zeros: Any) -> onnxruntime.OrtValue:
    """An array of zeros where the provider computes; on the CPU it is the array itself."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(zeros, provider.device, 0)
