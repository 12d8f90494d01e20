"""What each operator must give on the reference's inputs with the weights that are stored.

The stored weights are compared with the checkpoint's on their own (weights.py).  An operator is
therefore held to the weights it has, not to those it was made from: what is left of its error is
its own arithmetic, which is exact or costs what its activations are rounded to, whatever the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.graph.weights import Stored, WeightFile, form_of, read_layout
from ernie_export.quantize.formats import dequantize
from ernie_export.validate.weights import stored_matrices

if TYPE_CHECKING:
    from ernie_export.recipe import Parts

Array = np.ndarray[Any, Any]
States = Mapping[str, Array]
Matrices = Callable[[], Iterator[Array]]

NORMED, ATTENDED = "post_attention_norm.output", "input_norm.output"
#: What an operator reads, by what its weight is called below its layer.
INPUTS = {
    "attention.q": ATTENDED,
    "attention.k": ATTENDED,
    "attention.v": ATTENDED,
    "attention.o": "attention.core.output",
    "mlp.gate": NORMED,
    "mlp.up": NORMED,
    "shared.gate": NORMED,
    "shared.up": NORMED,
}


def expected(
    folder: Path, graph: str, parts: Parts, ids: Array, reference: States
) -> tuple[dict[str, Array], dict[str, float]]:
    """The reference's values [S, …], those behind a stored matrix computed anew from its own inputs.

    `reference` may hold a part of them: whole layers, each with what it reads.
    Beside them, by the name of an MLP, how far its inner values silu(gate)·up reach from zero: no
    operator of the graph ends there, but what computes in fp16 overflows there first.
    """
    result, inner = dict(reference), dict[str, float]()
    weights = _matrices(folder, graph, parts)
    for name, matrices in weights.items():
        module = name.removesuffix(".weight")
        layer, _, inside = module.removeprefix("layers.").partition(".")
        prefix = f"layers.{layer}."
        if module == "embedding":
            if "embedding.output" in reference:
                result["embedding.output"] = next(matrices())[ids]
            if "head.weight" not in weights and "logits" in reference:
                result["logits"] = reference["norm.output"] @ next(matrices()).T
        elif (f"{prefix}input_norm.output" if inside else "logits") not in reference:
            continue
        elif module == "head":
            result["logits"] = reference["norm.output"] @ next(matrices()).T
        elif inside == "experts.gate_up":
            down = weights[f"{prefix}experts.down"]
            experts = _experts(prefix, reference, matrices(), down())
            result[f"{prefix}experts.output"], inner[f"{prefix}experts"] = experts
        elif inside.endswith(".down") and not inside.startswith("experts"):
            mlp = module.removesuffix(".down")
            inputs = _silu(reference[f"{mlp}.gate.output"]) * reference[f"{mlp}.up.output"]
            inner[mlp] = float(np.abs(inputs).max())
            result[f"{module}.output"] = inputs @ next(matrices()).T
        elif inside in INPUTS:
            result[f"{module}.output"] = reference[prefix + INPUTS[inside]] @ next(matrices()).T
    return result, inner


def _matrices(folder: Path, graph: str, parts: Parts) -> dict[str, Matrices]:
    """By the name of each stored matrix, or stack of experts': what it stands for, fp32, one at a time."""

    def reader(file: WeightFile, stored: Stored) -> Matrices:
        def read() -> Iterator[Array]:
            form = form_of(stored.name, parts)
            assert form is not None
            for packed in stored_matrices(folder, file, stored, parts):
                yield dequantize(packed, form)

        return read

    return {
        stored.name: reader(file, stored)
        for file in read_layout(folder / graph)
        for stored in file.tensors
        if form_of(stored.name, parts) and not stored.name.endswith("scales")
    }


def _experts(
    prefix: str, reference: States, gate_up: Iterator[Array], down: Iterator[Array]
) -> tuple[Array, float]:
    """The chosen experts' outputs [S,H], each weighted by its score, and how far their inner values reach.

    Rows of gate and up alternate.
    """
    hidden = reference[prefix + NORMED]
    indices, scores = (reference[f"{prefix}routing.{what}"] for what in ("indices", "scores"))
    result, reached = np.zeros_like(hidden), 0.0
    for expert, (first, second) in enumerate(zip(gate_up, down, strict=True)):
        tokens, places = np.nonzero(indices == expert)
        both = hidden[tokens] @ first.T
        inner = _silu(both[:, 0::2]) * both[:, 1::2]
        reached = max(reached, float(np.abs(inner).max(initial=0.0)))
        result[tokens] += (inner @ second.T) * scores[tokens, places, None]
    return result, reached


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(−x) of a large negative x is infinite, and the quotient 0
        result: Array = x / (1 + np.exp(-x))
    return result
