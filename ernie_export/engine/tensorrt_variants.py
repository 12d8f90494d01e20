"""In what TensorRT and TensorRT for RTX differ, as far as code depends on it.

Between the versions of one module no code differs: what is used is what 10.13, 10.16 and 11.x have in common
(docs/tensorrt.md has the table, and tests/engine/test_tensorrt_bindings.py holds it against the bindings).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    plugins: bool
    """It loads ours; RTX ends the process at any plugin."""
    builds_anywhere: bool
    """For compute capabilities that are named, without a GPU; else for the GPU of the machine alone."""
    times_kernels: bool
    """While it builds, and keeps what it found in a timing cache."""
    specialises_kernels: bool
    """When an engine runs, for shapes that were free; asked to do so at once, so that a step can be captured."""
    tells_whether_capturable: bool
    """A context says whether its work can be captured as a CUDA graph."""


VARIANTS = {
    "tensorrt": Variant(
        plugins=True,
        builds_anywhere=False,
        times_kernels=True,
        specialises_kernels=False,
        tells_whether_capturable=False,
    ),
    "tensorrt_rtx": Variant(
        plugins=False,
        builds_anywhere=True,
        times_kernels=False,
        specialises_kernels=True,
        tells_whether_capturable=True,
    ),
}


def variant_of(module: str) -> Variant:
    return VARIANTS[module]
