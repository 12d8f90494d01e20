"""Choosing the next token from the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_export.errors import UserError, WorkError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sampling:
    """How to choose: greedily at temperature 0, else by chance among the likeliest tokens.

    Raises:
        UserError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"The temperature is {self.temperature}", "Give 0 (greedy) or a number above it.")
        if self.top_k < 0:
            raise UserError(f"top-k is {self.top_k}", "Give 0 (all tokens) or a number above it.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}", "Give a number above 0 and up to 1.")
        if self.seed < 0:
            raise UserError(f"The seed is {self.seed}", "Give 0 or a number above it.")

    def sampler(self, row: int) -> Sampler:
        """Row `row` of a batch; what it draws does not depend on the other rows."""
        return Sampler(self, np.random.default_rng((self.seed, row)))


class Sampler:
    def __init__(self, sampling: Sampling, generator: np.random.Generator):
        self._sampling = sampling
        self._generator = generator

    def pick(self, logits: Array) -> int:
        """The next token, from logits [V] float32.

        Raises:
            WorkError: the logits hold NaN or +inf, or no number above -inf.
        """
        if not math.isfinite(best := float(np.max(logits))):
            raise WorkError(f"The engine gave logits of {best}", "Run `ernie-export validate` on the bundle.")
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        tokens, probabilities = self._candidates(logits.astype(np.float64))
        drawn = self._generator.random() * probabilities.sum()
        at = int(np.searchsorted(np.cumsum(probabilities), drawn, side="right"))
        return int(tokens[min(at, len(tokens) - 1)])

    def _candidates(self, logits: Array) -> tuple[Array, Array]:
        """The tokens in question, likeliest first, and their probabilities (not normalised), [n] each."""
        count = min(self._sampling.top_k or logits.size, logits.size)
        tokens = np.argsort(-logits, kind="stable")[:count]
        probabilities = np.exp((logits[tokens] - logits[tokens[0]]) / self._sampling.temperature)
        if self._sampling.top_p < 1:
            before = np.cumsum(probabilities) - probabilities
            kept = int(np.count_nonzero(before < self._sampling.top_p * probabilities.sum()))
            tokens, probabilities = tokens[:kept], probabilities[:kept]
        return tokens, probabilities
