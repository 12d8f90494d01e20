"""What every section is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plugins.torch.library import Library
from plugins.torch.operators import register
from tests.gpu.device import Device, Emulated, Gpu
from tests.gpu.sizes import Sizes

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Kit:
    device: Device
    library: Library
    sizes: Sizes
    note: Callable[[str, Any], None]
    """Says a line, and keeps the value in the section's results, so that a section that is cut off loses nothing."""
    end: float
    """Of the section, by time.monotonic."""

    @classmethod
    def open(
        cls, library: Path, emulated: bool, sizes: Sizes, note: Callable[[str, Any], None], seconds: float
    ) -> Kit:
        end, device = time.monotonic() + seconds, Emulated() if emulated else Gpu()
        opened = Library(library, device.torch)
        register(opened)
        return cls(device, opened, sizes, note, end)

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device.torch).manual_seed(seed)
