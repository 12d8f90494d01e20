"""A safetensors file, mapped into memory and read where it lies.

The safetensors library checks the file; its own reader copies each tensor, so the views are made
here from the offsets in the header (format: https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ernie_export.errors import UserError

DTYPES: dict[str, np.dtype[Any]] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp32": np.dtype(np.float32),
}
NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
OF_THE_MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
LARGEST_HEADER = 100_000_000
"""Bytes; the library takes no longer one."""
PIECE = 8 << 20  # bytes handed out at a time


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `offset` and `nbytes` in bytes from the start of the file at `path`.

    `dtype` is one of DTYPES, or safetensors' own word ("F8_E4M3") for a type that is not read.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


class TensorFile:
    """One mapped file. Arrays are read-only views that keep the mapping alive."""

    def __init__(self, path: Path):
        """Map the file and read its header; UserError when it is no whole safetensors file."""
        if not path.is_file():
            what = "is no file" if path.exists() else "is missing"
            raise UserError(f"{path} {what}", "Download the checkpoint again")
        try:
            with path.open("rb") as file:
                _check(path)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno in OF_THE_MACHINE:
                raise
            raise UserError(
                f"{path} cannot be read ({error.strerror or error})", "Make it readable"
            ) from None
        except SafetensorError as error:
            raise _damaged(path, str(error)) from None
        self.path = path
        self.nbytes = len(self._map)
        MAPPED.add(self)
        self.tensors = _read_header(self._map, path)

    def array(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """The tensor as a read-only view of the mapping; bf16 as ml_dtypes.bfloat16."""
        info = self.tensors[name]
        return np.ndarray(info.shape, DTYPES[info.dtype], buffer=self._map, offset=info.offset)

    def is_cut_short(self) -> bool:
        """Whether the file has lost bytes since it was mapped: to read those ends the process (cli/bus_error.py)."""
        try:
            return self.path.stat().st_size < self.nbytes
        except OSError:  # removed, which leaves the mapping what it is
            return False

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The tensor's bytes, PIECE at a time, where they lie."""
        info = self.tensors[name]
        view = memoryview(self._map)
        for start in range(info.offset, info.offset + info.nbytes, PIECE):
            yield view[start : min(start + PIECE, info.offset + info.nbytes)]


MAPPED: WeakSet[TensorFile] = WeakSet()
"""Those that this process holds."""


def changed(path: Path) -> UserError:
    return UserError(f"{path} changed while it was read", "Let nothing write to it, and start again.")


def _check(path: Path) -> None:
    """Let the library check lengths, types, overlaps and holes of a file that can be opened."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except MemoryError:
        raise OSError(errno.ENOMEM, "there is no address space to map it", str(path)) from None
    except FileNotFoundError:  # it says so of whatever it cannot open, and the file is there
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path)) from None


def _read_header(mapping: mmap.mmap, path: Path) -> dict[str, TensorInfo]:
    length = int.from_bytes(mapping[:8], "little")
    try:
        header = json.loads(mapping[8 : 8 + length].decode("utf-8"), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = NAMES.get(entry["dtype"], entry["dtype"])
        tensors[name] = TensorInfo(name, dtype, tuple(entry["shape"]), path, 8 + length + begin, end - begin)
    return tensors


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"its header names {name} twice")
        found[name] = value
    return found


def _damaged(path: Path, error: str) -> UserError:
    with path.open("rb") as file:
        pointer = file.read(24) == b"version https://git-lfs."
    if pointer:
        return UserError(f"{path} is a Git LFS pointer, not the weights", "Fetch them with `git lfs pull`")
    reason = _misplaced(path) or error.removeprefix("Error while deserializing header: ")
    return UserError(f"{path} is no whole safetensors file ({reason})", "Download the file again")


def _misplaced(path: Path) -> str:
    """Which tensor lies where none can lie, in the words of a person; empty where the header cannot tell."""
    size = path.stat().st_size
    if size < 8:
        return f"it has {size} bytes, and the length of its header alone takes 8"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        room = size - 8 - length
        try:
            header = json.loads(file.read(length)) if 0 < length <= LARGEST_HEADER else {}
            places = sorted(
                (*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__"
            )
            end = 0
            for begin, after, name in places:
                if begin > after:
                    return f"{name} ends at byte {after}, before it begins at {begin}"
                if begin != end:
                    return f"{name} begins at byte {begin}, where the tensor before it ends at {end}"
                end = after
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return ""
    return f"its tensors take {end} bytes, and there are {room}" if places and end != room else ""
