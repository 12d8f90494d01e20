"""The library of the kernels, as PyTorch calls it: ctypes over plugins/kernels/c_interface.cpp.

ctypes and no extension of PyTorch's, so that what nvcc alone builds will do, whatever PyTorch is there.
The structs are those of the headers, field by field; a test holds their places to the compiler's.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ernie_export.errors import UserError, WorkError

I32, U64, F32, POINTER = ctypes.c_int32, ctypes.c_uint64, ctypes.c_float, ctypes.c_void_p
BUILD = Path(__file__).parents[2] / "build" / "plugins"
#: By the type of the device: where `make plugins` and `make test-plugins` leave the library.
BUILT = {"cuda": BUILD / "cuda", "cpu": BUILD / "plain"}
NAME = "libernie_kernels.so"


def fields(*kinds: tuple[Any, str]) -> list[tuple[str, Any]]:
    return [(name, kind) for kind, names in kinds for name in names.split()]


class Call(ctypes.Structure):
    function: ClassVar[str]


class Routing(Call):
    """routing.h"""

    function = "ernie_moe_routing"
    _fields_ = fields(
        (I32, "type tokens hidden experts k"),
        (F32, "norm_min"),
        (POINTER, "x weight bias indices scores workspace"),
        (U64, "workspace_bytes"),
    )


class Linear(Call):
    """linear.h; bits and block_size are its `format`."""

    function = "ernie_quantized_linear"
    _fields_ = fields((I32, "type bits block_size tokens n k"), (POINTER, "x weight scales y"))


class Experts(Call):
    """experts.h; bits and block_size are its `format`."""

    function = "ernie_moe_experts"
    _fields_ = fields(
        (I32, "type bits block_size tokens hidden width experts k"),
        (POINTER, "x indices scores gate_up gate_up_scales down down_scales y faults workspace"),
        (U64, "workspace_bytes"),
    )


class Attention(Call):
    """attention.h"""

    function = "ernie_cached_attention"
    _fields_ = fields(
        (I32, "type batch tokens heads kv_heads head_dim past_rows rows positions"),
        (F32, "scale"),
        (POINTER, "query key value past_key past_value cos sin position_ids seqlens_k"),
        (POINTER, "output present_key present_value faults workspace"),
        (U64, "workspace_bytes"),
        (I32, "cache_bits"),
        (POINTER, "past_key_scales past_value_scales present_key_scales present_value_scales"),
    )


CALLS = (Routing, Linear, Experts, Attention)


class Library:
    """The launch functions on one device: a GPU, or the CPU where the library is the emulated one."""

    def __init__(self, path: Path, device: torch.device):
        """Raises UserError where the library is not there or does not load."""
        make = "make plugins" if device.type == "cuda" else "make test-plugins"
        try:
            self._loaded = ctypes.CDLL(str(path.resolve(strict=True)))
        except OSError as error:
            raise UserError(
                f"The kernels' library {path} does not load ({error})", f"Build it: `{make}`."
            ) from error
        self.path, self.device = path, device
        #: Kernels set bits of it where an index, a position or a row of the cache is out of range,
        #: or a score is NaN.
        self.faults = torch.zeros(1, dtype=torch.int32, device=device)
        for call in CALLS:
            getattr(self._loaded, call.function).restype = ctypes.c_char_p
            getattr(self._loaded, f"{call.function}_workspace").restype = ctypes.c_uint64

    @classmethod
    def built(cls, device: torch.device) -> Library:
        """The one that was built in this repository for this kind of device."""
        return cls(BUILT[device.type] / NAME, device)

    def workspace(self, call: Call) -> int:
        """The bytes that a launch asks for."""
        return int(getattr(self._loaded, f"{call.function}_workspace")(ctypes.byref(call)))

    def launch(self, call: Call) -> None:
        """Launch on the device's current stream; the workspace is PyTorch's, so a CUDA graph may hold it.

        Raises:
            WorkError: in the launch function's words; nothing was launched.
        """
        workspace: Tensor | None = None
        if hasattr(call, "workspace") and (needed := self.workspace(call)):
            workspace = torch.empty(needed, dtype=torch.uint8, device=self.device)
            call.workspace, call.workspace_bytes = workspace.data_ptr(), needed
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else None
        message = getattr(self._loaded, call.function)(ctypes.byref(call), ctypes.c_void_p(stream))
        if message is not None:
            raise WorkError(
                f"{call.function} refuses: {message.decode()}",
                "`tests/gpu/run` tries every kernel on this machine.",
            )

    def require_sound(self) -> None:
        """Wait for the device; WorkError where a kernel met something out of range since the last time."""
        if int(self.faults):
            self.faults.zero_()
            raise WorkError(
                "An expert index, a position or a row of the cache was out of range, or a score was NaN",
                "The results of that run are NaN where it was; look at the lengths that were fed.",
            )
