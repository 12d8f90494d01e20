"""A small safetensors file, read with numpy alone, so that a device needs no library for it.

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
DTYPES: dict[Any, np.dtype[Any]] = {"I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "F32": np.dtype("<f4")}
METADATA = "__metadata__"


def parse(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The metadata and the tensors, by name, of a file's bytes.

    Raises:
        ValueError: it is no such file, is not whole, or holds a type that is not in DTYPES.
    """
    begins = 8 + int.from_bytes(data[:8], "little")
    if begins > len(data):
        raise ValueError("its header is not whole")
    try:
        header = json.loads(data[8:begins])
    except RecursionError as error:
        raise ValueError("its header is nested without end") from error
    if not isinstance(header, dict) or not isinstance(metadata := header.pop(METADATA, {}), dict):
        raise ValueError("its header is no table")
    ends, tensors = begins, {}
    for name, entry in sorted(header.items(), key=lambda item: _place(*item)):
        begin, end = _place(name, entry)
        dtype, shape = DTYPES.get(entry.get("dtype")), entry.get("shape")
        if dtype is None:
            raise ValueError(f"{name} is of another type")
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"{name} has no shape")
        if begins + begin != ends or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} does not lie where its shape says")
        ends = begins + end
        if ends > len(data):
            raise ValueError(f"{name} is cut off")
        tensors[name] = np.array(np.frombuffer(data[begins + begin : ends], dtype).reshape(shape))
    if ends != len(data):
        raise ValueError("there is more behind its tensors")
    return metadata, tensors


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends behind the header."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise ValueError(f"{name} has no place")
    return offsets[0], offsets[1]
