"""What the linears of a layer read, as far as GPTQ asks: H = Σ x xᵀ of each."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Hessians:
    """Takes what `ReferenceLayer.run` tells of inputs. Linears that read the same input share its sum."""

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}
        self._tokens: dict[str, int] = {}

    def __call__(self, names: tuple[str, ...], inputs: Array) -> None:
        """`names`: the weights that read `inputs` [tokens, K] float32."""
        product = inputs.T @ inputs
        if names[0] in self._sums:
            self._sums[names[0]] += product
        else:
            self._sums |= dict.fromkeys(names, product)
        for name in names:
            self._tokens[name] = self._tokens.get(name, 0) + len(inputs)

    def tokens(self, name: str) -> int:
        """How many tokens a weight was used for."""
        return self._tokens.get(name, 0)

    def of(self, name: str) -> Array:
        """[K, K] float32, of a weight that was used at all."""
        return self._sums[name]

    def finite(self) -> bool:
        """A number that is none on the diagonal, where there is one anywhere."""
        return all(np.isfinite(np.diagonal(total)).all() for total in self._sums.values())
