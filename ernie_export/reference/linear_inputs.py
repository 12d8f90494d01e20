"""What enters each linear of a layer, experts included, while transformers runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Inputs = Callable[[tuple[str, ...], Array], None]
"""Takes the published names of the weights that read an input, and the input [tokens,K] float32."""
FIRST = {"q_proj": ("q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_proj", "up_proj")}
ALONE = ("o_proj", "down_proj")
"""Weights that read the same input are told once, when the first of them does."""


@contextmanager
def watched_inputs(weights: Mapping[str, Array], inputs: Inputs | None) -> Iterator[None]:
    """`weights`: published name → the memory that the layer's weight lies in.

    transformers' experts are no modules with hooks but slices of one tensor, so it is the call of
    torch's `linear` that is watched: where a weight begins tells which it is.
    """
    if inputs is None:
        yield
        return
    from torch.nn.functional import linear
    from torch.overrides import TorchFunctionMode

    readers = _readers(weights)
    tell: Inputs = inputs

    class Watched(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is linear and (names := readers.get(args[1].data_ptr())):
                tell(names, args[0].detach().reshape(-1, args[0].shape[-1]).numpy())
            return function(*args, **(kwargs or {}))

    with Watched():
        yield


def _readers(weights: Mapping[str, Array]) -> dict[int, tuple[str, ...]]:
    """Where the first weight of each input begins → the names of all that read it."""
    found = {}
    for name, array in weights.items():
        prefix, _, last = name.removesuffix(".weight").rpartition(".")
        if last in FIRST or last in ALONE:
            names = tuple(f"{prefix}.{other}.weight" for other in FIRST.get(last, (last,)))
            found[array.ctypes.data] = names
    return found
