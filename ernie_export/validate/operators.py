"""Each operator alone: the engine's, on the very inputs that transformers gave its own.

Every operator of the exported graph is fed with the reference's values, all at once in one run, so
that its error is its own and no other's.  What it must give is said by expected.py: an operator
without quantized weights must agree to fp32's last digits in every format, and one with them may be
off by what the rounding of its activations costs.  The first operator that is further off than its
gate allows is where a fault is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.errors import WorkError

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine

Array = np.ndarray[Any, Any]
States = Mapping[str, Array]

CORE = ".attention.core.output"
#: The part that an operator belongs to, by a piece of its name; the first that fits.
KINDS = {
    CORE: "core",
    ".attention.": "attention",
    "_norm.": "exact",
    ".after_attention": "exact",
    ".routing.": "routing",
    ".experts.": "experts",
    ".shared.": "shared",
    ".mlp.": "dense",
    "embedding": "embedding",
    "logits": "head",
}
"""What is left, the sum of a layer and the final norm, has no weights that are quantized: exact."""


@dataclass
class OperatorError:
    """How far one operator is off from what it must give, fed with the reference's inputs."""

    name: str
    kind: str
    relative_error: float
    """‖export − expected‖ / ‖expected‖ over all tokens; of an expert operator, of its worst expert."""
    cosine: float
    """The least over the tokens, of the export's vector with the expected one."""
    expert: int | None = None
    """The expert that is furthest off."""


def kind_of(name: str) -> str:
    return next((kind for piece, kind in KINDS.items() if piece in name), "exact")


def layer_outputs(reference: States) -> list[str]:
    """The names of the hidden states between the layers, the embedding's first."""
    layers = {name for name in reference if name.startswith("layers.") and name.count(".") == 2}
    return [
        name
        for name in reference
        if name == "embedding.output" or (name in layers and name.endswith(".output"))
    ]


def run_given(engine: Engine, ids: Array, reference: States, cuts: Sequence[int] = ()) -> dict[str, Array]:
    """What the engine shows of one window `ids` [S], given the reference's values it was opened for.

    The window is fed in one piece, or cut before the positions `cuts`: each piece then sees those
    before it through the cache.
    """
    tokens: list[int] = ids.tolist()
    session = engine.start(1, len(tokens))
    pieces: list[dict[str, Array]] = []
    for begin, end in pairwise([0, *cuts, len(tokens)]):
        given = [{name: values[begin:end] for name, values in reference.items()}] if reference else ()
        fed = session.feed([tokens[begin:end]], all_logits=True, given=given)
        pieces.append({**fed.probes[0], "logits": fed.logits[0]})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


SINGLE = 8
"""Tokens that are fed one by one, as in decode."""


def cached_feeding(tokens: int) -> list[int]:
    """Where to cut a window so that all three ways of feeding occur: prefill, decode, several over a cache."""
    half = tokens // 2
    return [cut for cut in range(half, half + SINGLE + 1) if 0 < cut < tokens]


def compare_cached(reference: States, export: States) -> list[OperatorError]:
    """As compare_operators, of a window that was cut; the errors of attention are the cache's."""
    errors = compare_operators(reference, export)
    for error in errors:
        if error.name.endswith(CORE):
            error.name, error.kind = error.name.removesuffix(CORE) + ".attention.cache", "cache"
    return errors


def largest_activation(reference: States, inner: Mapping[str, float], limit: float) -> tuple[str, float]:
    """How far from zero values reach, and where they first go beyond `limit`, else are largest.

    `inner` says how far they reach inside an MLP, between its first and its second matrices, where
    no operator ends: `layers.3.experts` → the largest of |silu(gate)·up|.
    """
    reached: dict[str, float] = {}
    for name, values in reference.items():
        mlp = name.removesuffix(".output").removesuffix(".down")
        if mlp in inner:
            reached[f"{mlp}.inner"] = inner[mlp]
        if np.issubdtype(values.dtype, np.floating):
            reached[name] = float(np.abs(values).max())
    largest = max(reached, key=lambda name: reached[name])
    return next((name for name in reached if reached[name] > limit), largest), reached[largest]


def compare_operators(reference: States, export: States) -> list[OperatorError]:
    """The error of each, in the graph's order; the choice of experts counts with the scores.

    Raises:
        WorkError: the engine does not show one of them.
    """
    if missing := [name for name in reference if name not in export]:
        raise WorkError(f"The engine does not show {missing[0]}", "Build the bundle again with this version.")
    return [_error(name, reference, export) for name in reference if not name.endswith(".routing.indices")]


@dataclass
class LayerDrift:
    """How far the hidden state behind a layer is off."""

    layer: int
    added_error: float
    """Relative error of what the layer adds, fed with the reference's state."""
    added_cosine: float
    error: float
    """Relative error of the state itself, the engine left alone: what has come together so far."""
    cosine: float
    own_error: float | None = None
    """Relative error of what the layer adds to the engine's own state, the reference's layer fed with it too."""


def compare_layers(reference: States, fed: States, free: States) -> list[LayerDrift]:
    """`fed` was given the reference's state before each layer, `free` nothing."""
    names = layer_outputs(reference)
    drifts = []
    for layer, (before, name) in enumerate(pairwise(names)):
        want, got = (states[name] - reference[before] for states in (reference, fed))
        drifts.append(
            LayerDrift(
                layer,
                relative_error(want, got),
                least_cosine(want, got),
                relative_error(reference[name], free[name]),
                least_cosine(reference[name], free[name]),
            )
        )
    return drifts


def _error(name: str, reference: States, export: States) -> OperatorError:
    want, got = reference[name], export[name]
    kind = kind_of(name)
    if kind == "routing":
        prefix = name.removesuffix("scores")
        experts = 1 + max(int(states[prefix + "indices"].max()) for states in (reference, export))
        want, got = (_dense(states, prefix, experts) for states in (reference, export))
    error = OperatorError(name, kind, relative_error(want, got), least_cosine(want, got))
    if kind == "experts":
        indices = reference[name.replace("experts.output", "routing.indices")]
        by_expert = {
            int(expert): relative_error(want[rows], got[rows])
            for expert in np.unique(indices)
            if (rows := (indices == expert).any(axis=1)).any()
        }
        error.expert = max(by_expert, key=lambda expert: np.nan_to_num(by_expert[expert], nan=np.inf))
        error.relative_error = by_expert[error.expert]
    return error


def _dense(states: States, prefix: str, experts: int) -> Array:
    """Scores by expert, [S,E]: the order in which equal experts were found does not matter."""
    indices, scores = states[prefix + "indices"], states[prefix + "scores"]
    dense = np.zeros((len(indices), experts), np.float64)
    np.put_along_axis(dense, indices, scores.astype(np.float64), axis=1)
    return dense


def relative_error(want: Array, got: Array) -> float:
    """‖got − want‖ / ‖want‖ (Frobenius), NaN or infinite where `got` is not finite."""
    size = float(np.linalg.norm(want.astype(np.float64)))
    off = float(np.linalg.norm(got.astype(np.float64) - want))
    return off / size if size else (0.0 if off == 0 else np.inf)


def least_cosine(want: Array, got: Array) -> float:
    want, got = want.astype(np.float64), got.astype(np.float64)
    sizes = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
    products = np.einsum("sh,sh->s", want, got)
    with np.errstate(invalid="ignore"):
        return float(np.min(np.divide(products, sizes, out=np.ones_like(products), where=sizes > 0)))


def worst(errors: Iterable[OperatorError]) -> list[OperatorError]:
    """Of several runs, the worst of each operator; in the graph's order."""
    found: dict[str, OperatorError] = {}
    for error in errors:
        seen = found.setdefault(error.name, error)
        if not error.relative_error <= seen.relative_error:  # NaN is worse than any number
            found[error.name] = error
    return list(found.values())


def operator_metrics(errors: Iterable[OperatorError]) -> dict[str, float]:
    """`operators.KIND_error`: the largest relative error of the operators of a kind."""
    largest: dict[str, float] = {}
    for error in errors:
        name = f"operators.{error.kind}_error"
        if not error.relative_error <= largest.get(name, -1.0):
            largest[name] = error.relative_error
    return largest
