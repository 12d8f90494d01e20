"""Where a fault is: the first thing in the graph's order that is further off than its gate allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_export.validate.gates import GateResult
    from ernie_export.validate.operators import OperatorError
    from ernie_export.validate.weights import WeightError


def first_fault(
    gates: Sequence[GateResult], weights: Sequence[WeightError], operators: Sequence[OperatorError]
) -> str | None:
    """The stored tensor, else the operator, that fails a gate first; None where none of either does.

    A wrong weight comes before the operator that runs on it: it is the cause.
    """
    limits = {gate.name: gate.max for gate in gates if not gate.passed and gate.max is not None}
    for name in ("weights.misplaced", "weights.relative_error"):
        field = name.removeprefix("weights.")
        off = [error for error in weights if name in limits and not getattr(error, field) <= limits[name]]
        if off:
            return f"{off[0].name} ({off[0].source})"
    for error in operators:
        limit = limits.get(f"operators.{error.kind}_error")
        if limit is not None and not error.relative_error <= limit:
            return error.name if error.expert is None else f"{error.name} (expert {error.expert})"
    return None
