"""That an engine agrees with itself: however tokens are fed, their logits are the same.

The metrics are `decode.max_difference`, `batch.max_difference`, and `probes.max_difference`: of the engine that
shows its routing, which is measured, from the one that ships.  Each is a part of the spread of the
logits, so that one gate suits models of any size and depth.  All tokens are known before, so what
is fed can be played through the graph one segment after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.validate.metrics import relative_difference
from ernie_export.validate.segments import LOGITS, Segment

if TYPE_CHECKING:
    from ernie_export.engine.interface import Engine

Array = np.ndarray[Any, Any]
Feeds = list[list[list[int]]]
"""What each feed appends to each row."""
Values = list[list[Array]]
"""By feed and row, [tokens, …]."""
WATCHED, AT_ONCE, ONE_BY_ONE, TOGETHER = "watched", "at once", "one by one", "together"


def plays(heads: Sequence[Sequence[int]], rows: int) -> dict[str, Feeds]:
    """All that is fed: the first of `heads` in three ways, and `rows` of them together and each alone.

    The rows are made of unequal length, so that some are padded, and fed in the three ways there are:
    prefill, one token, and several tokens over a filled cache.
    """
    first = list(heads[0])
    cut = [_cut(heads[row % len(heads)], (row + 1) / rows) for row in range(rows)]
    return {
        WATCHED: [[first]],
        AT_ONCE: [[first]],
        ONE_BY_ONE: [[[token]] for token in first],
        TOGETHER: [list(feed) for feed in zip(*cut, strict=True)],
        **{_alone(row): [[piece] for piece in pieces] for row, pieces in enumerate(cut)},
    }


def play(segment: Segment, engine: Engine, feeds: Feeds, before: Values | None) -> Values:
    """The feeds through a segment that was opened as `engine`, given what the segment before made of them."""
    lengths = [sum(len(feed[row]) for feed in feeds) for row in range(len(feeds[0]))]
    session = engine.start(len(lengths), max(lengths))
    after: Values = []
    for number, rows in enumerate(feeds):
        given = [] if before is None else [{str(segment.entry): values} for values in before[number]]
        fed = session.feed(rows, all_logits=True, given=given)
        shown = fed.logits if segment.exit == LOGITS else [probes.get(segment.exit) for probes in fed.probes]
        # A row that is fed nothing shows nothing.
        after.append([np.empty((0, 0), np.float32) if values is None else values for values in shown])
    return after


def consistency_metrics(logits: Mapping[str, Values]) -> dict[str, float]:
    """From the logits of every play."""
    at_once = [logits[AT_ONCE][0][0]]
    one_by_one = [np.concatenate([feed[0] for feed in logits[ONE_BY_ONE]])]
    together = logits[TOGETHER]
    alone = [[logits[_alone(row)][feed][0] for row in range(len(rows))] for feed, rows in enumerate(together)]
    return {
        "probes.max_difference": relative_difference(logits[WATCHED][0], at_once),
        "decode.max_difference": relative_difference(at_once, one_by_one),
        "batch.max_difference": relative_difference(
            [row for feed in together for row in feed], [row for feed in alone for row in feed]
        ),
    }


def _alone(row: int) -> str:
    return f"row {row} alone"


def _cut(row: Sequence[int], part: float) -> list[list[int]]:
    """`part` of a row, as prefill, one token, and a rest of a few; short rows have less of the last two."""
    kept = list(row[: max(1, round(len(row) * part))])
    rest = min(4, (len(kept) - 1) // 2)
    prefill = len(kept) - rest - (len(kept) > 1)
    return [kept[:prefill], kept[prefill : len(kept) - rest], kept[len(kept) - rest :]]
