"""That an engine agrees with itself: however tokens are fed, their logits are the same.

The metrics are `decode.max_difference` and `batch.max_difference`, beside `probes.max_difference`: of
the engine that shows its routing, which is measured, from the one that ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.validate.metrics import max_difference

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine

Array = np.ndarray[Any, Any]


def prefill(engine: Engine, ids: Sequence[int]) -> Array:
    """Logits [S,V] of `ids` fed at once."""
    return engine.start(1, len(ids)).feed([ids], all_logits=True).logits[0]


def decode_difference(engine: Engine, ids: Sequence[int]) -> float:
    """The largest difference of a logit between feeding `ids` at once and one by one."""
    session = engine.start(1, len(ids))
    one_by_one = [session.feed([[id]]).logits[0] for id in ids]
    return max_difference([prefill(engine, ids)], [np.concatenate(one_by_one)])


def batch_difference(engine: Engine, rows: Sequence[Sequence[int]]) -> float:
    """The largest difference of a logit between rows run together and each alone.

    The rows are made of unequal length, so that some are padded, and fed in the three ways there are:
    prefill, one token, and several tokens over a filled cache.
    """
    feeds = [_cut(row, (row_number + 1) / len(rows)) for row_number, row in enumerate(rows)]
    longest = max(map(len, rows))
    together = engine.start(len(rows), longest)
    in_batch = [together.feed([pieces[part] for pieces in feeds], True).logits for part in range(3)]
    alone = []
    for pieces in feeds:
        session = engine.start(1, longest)
        alone.append([session.feed([piece], True).logits[0] for piece in pieces])
    return max_difference(
        [in_batch[part][row] for row in range(len(rows)) for part in range(3)],
        [logits for parts in alone for logits in parts],
    )


def _cut(row: Sequence[int], part: float) -> list[list[int]]:
    """`part` of a row, as prefill, one token, and a rest of a few; short rows have less of the last two."""
    kept = list(row[: max(1, round(len(row) * part))])
    rest = min(4, (len(kept) - 1) // 2)
    prefill = len(kept) - rest - (len(kept) > 1)
    return [kept[:prefill], kept[prefill : len(kept) - rest], kept[len(kept) - rest :]]
