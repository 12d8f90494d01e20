"""Where a fault is: the first thing in the graph's order that is further off than its gate allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_export.validate.gates import GateResult
    from ernie_export.validate.operators import OperatorError
    from ernie_export.validate.weights import WeightError


#: What is at fault where every weight and every operator alone is right, by the gate that failed.
BEYOND_OPERATORS = {
    "decode.max_difference": "the cache: tokens fed one by one differ from the same fed at once",
    "batch.max_difference": "the batch: rows run together differ from each alone",
    "probes.max_difference": "the graph: it computes otherwise when nothing of it is shown",
}


def first_fault(
    gates: Sequence[GateResult],
    weights: Sequence[WeightError],
    operators: Sequence[OperatorError],
    largest: str = "",
) -> str | None:
    """The stored tensor, else the operator, that fails a gate first; None where no place can be named.

    A wrong weight comes before the operator that runs on it: it is the cause.  `largest` names
    the value that activations are too large from.
    """
    limits = {gate.name: gate.max for gate in gates if not gate.passed and gate.max is not None}
    for name in ("weights.misplaced", "weights.block_error", "weights.relative_error"):
        field = name.removeprefix("weights.")
        off = [error for error in weights if name in limits and not getattr(error, field) <= limits[name]]
        if off:
            return f"{off[0].name} ({off[0].source})"
    for error in operators:
        limit = limits.get(f"operators.{error.kind}_error")
        if limit is not None and not error.relative_error <= limit:
            return error.name if error.expert is None else f"{error.name} (expert {error.expert})"
    if "activations.largest" in limits:
        return f"{largest} (its activations are too large)"
    return next((place for name, place in BEYOND_OPERATORS.items() if name in limits), None)
