"""An export against an earlier one of the same checkpoint: whether its quality has fallen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ernie_export.errors import UserError
from ernie_export.nearest import did_you_mean
from ernie_export.validate.report import BaselineReport, BaselineRow, Report

DEFAULTS = {
    "logits.kl_mean": "1.1x+1e-6",
    "logits.kl_p99": "1.25x+1e-5",
    "logits.same_top1": "0.005",
    "routing.agreement": "0.005",
    "perplexity.ratio": "0.002",
}
"""What may be lost where nothing else is said: what another processor or runtime may cost, not more.

Greedy text is not among them: one token that falls the other way changes all that follow.
"""

BETTER_HIGH = ("agreement", "agreement_min", "same_top1", "top5_overlap", "experts")
"""Last parts of the names of metrics of which more is better; of all others less is."""

NOT_QUALITY = ("perplexity.reference", "memory.peak_bytes")

FORM = re.compile(r"(?:(?P<factor>[0-9.]+)x)?(?:(?:(?<=x)\+|^)(?P<amount>[0-9.]+(?:e-?[0-9]+)?))?", re.ASCII)


@dataclass(frozen=True)
class Tolerance:
    """`1.1x`: 1.1 times the earlier value; `0.005`: that much worse; `1.1x+1e-6`: both."""

    text: str
    factor: float
    amount: float

    @classmethod
    def parse(cls, text: str) -> Tolerance | None:
        """None where the text is no tolerance."""
        found = FORM.fullmatch(text)
        try:
            factor, amount = float(found["factor"] or 1), float(found["amount"] or 0)  # type: ignore[index]
        except (TypeError, ValueError):
            return None
        return cls(text, factor, amount) if text and math.isfinite(factor) and math.isfinite(amount) else None

    def bound(self, name: str, before: float) -> float:
        """The worst that metric `name` may be.

        Raises:
            UserError: the factor asks for more than there was.
        """
        high = better_high(name)
        if self.factor > 1 if high else self.factor < 1:
            raise UserError(
                f"{name} may not be asked to be {self.text} of what it was: that is better, not worse",
                f"Allow a factor of {'at most' if high else 'at least'} 1.",
            )
        return before * self.factor - self.amount if high else before * self.factor + self.amount


def better_high(name: str) -> bool:
    return name.rpartition(".")[2] in BETTER_HIGH


@dataclass(frozen=True)
class Baseline:
    """What an earlier report demands of the next one; made before the work, so that a mistake shows at once."""

    path: Path
    report: Report
    tolerances: dict[str, Tolerance]

    @classmethod
    def read(cls, path: Path, allowances: Iterable[str] = (), fingerprint: str | None = None) -> Baseline:
        """The report in a file, and what may be lost: DEFAULTS, changed by `allowances`, each `NAME=TOLERANCE`.

        `NAME=any` leaves a metric out.

        Raises:
            UserError: it is no report, or of another checkpoint than the one with this fingerprint; an
                allowance is not understood or names what the report does not hold.
        """
        report = Report.read(path)
        if fingerprint is not None:
            _require_same_checkpoint(path, report, fingerprint)
        wanted = {name: text for name, text in DEFAULTS.items() if name in report.metrics}
        for allowance in allowances:
            name, _, text = allowance.partition("=")
            _require_metric(path, report, name)
            wanted[name] = text
        tolerances = {name: _tolerance(name, text) for name, text in wanted.items() if text != "any"}
        for name, tolerance in tolerances.items():
            if not math.isfinite(report.metrics[name]):
                raise UserError(
                    f"{path} is no measure of what follows: its {name} is {report.metrics[name]}",
                    "Name the report of a build that passed.",
                )
            tolerance.bound(name, report.metrics[name])
        return cls(path, report, tolerances)

    def judge(self, report: Report) -> Report:
        """`report` with what has become of the earlier numbers; failed if one fell further than it may.

        Raises:
            UserError: the two reports are not of the same checkpoint and the same inputs.
        """
        require_comparable(self.path, self.report, report)
        rows = [
            _row(name, self.report.metrics[name], report.metrics.get(name), tolerance)
            for name, tolerance in self.tolerances.items()
        ]
        baseline = BaselineReport(
            time=self.report.time,
            recipe=self.report.recipe,
            target=self.report.target,
            verdict=self.report.verdict,
            seal=self.report.seal,
            rows=rows,
        )
        verdict = report.verdict if all(row.passed for row in rows) else "failed"
        return report.model_copy(update={"baseline": baseline, "verdict": verdict})


def require_comparable(path: Path, other: Report, report: Report) -> None:
    """Raises UserError unless `other`, read from `path`, is of the same checkpoint and inputs as `report`."""
    _require_same_checkpoint(path, other, report.checkpoint.fingerprint)
    if other.inputs.sha256 != report.inputs.sha256:
        raise UserError(
            f"{path} was measured on other tokens ({other.inputs.windows} windows of {other.inputs.tokens} "
            f"from {other.inputs.source})",
            "Name a report that was made with the same text and the same version of ernie-export.",
        )


def _require_same_checkpoint(path: Path, other: Report, fingerprint: str) -> None:
    if other.checkpoint.fingerprint != fingerprint:
        raise UserError(
            f"{path} is of another checkpoint ({other.checkpoint.name}, "
            f"fingerprint {other.checkpoint.fingerprint[:12]}, not {fingerprint[:12]})",
            "Name a report of this checkpoint.",
        )


def _require_metric(path: Path, report: Report, name: str) -> None:
    if name in report.metrics and name not in NOT_QUALITY:
        return
    names = [known for known in report.metrics if known not in NOT_QUALITY]
    raise UserError(f"{path} holds no measure of quality {name!r}", did_you_mean(name, names))


def _tolerance(name: str, text: str) -> Tolerance:
    tolerance = Tolerance.parse(text)
    if tolerance is None:
        raise UserError(
            f"What is allowed of {name} is not understood: {text!r}",
            f"Write a factor ({name}=1.1x), an amount ({name}=0.005), both ({name}=1.1x+1e-6), or {name}=any.",
        )
    return tolerance


def _row(name: str, before: float, value: float | None, tolerance: Tolerance) -> BaselineRow:
    bound = tolerance.bound(name, before)
    passed = value is not None and (value >= bound if better_high(name) else value <= bound)
    return BaselineRow(
        name=name, before=before, value=value, bound=bound, allowed=tolerance.text, passed=passed
    )
