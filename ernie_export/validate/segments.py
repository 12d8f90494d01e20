"""The stretches of the exported graph that are opened alone, and what the reference wants of each.

An engine that fits into memory is one stretch; of one that does not, the embedding, every layer and
the head are each cut out of the real graph, opened, compared and let go.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ernie_export.engine.info import EngineInfo
    from ernie_export.engine.interface import Engine
    from ernie_export.reference.layers import Routing
    from ernie_export.reference.recording import Recording

Array = np.ndarray[Any, Any]
States = Mapping[str, Array]
Open = Callable[[Sequence[str], Sequence[str]], "Engine"]
"""Opens an engine that shows the first named values, and is given the second."""
LOGITS = "logits"


@dataclass(frozen=True)
class Segment:
    title: str
    entry: str | None
    """The value that it is given to begin with; None where it begins with the tokens."""
    exit: str
    open: Open
    sealed: bool = False
    """The engine shows its routers alone; opened for anything else, it is the graph that answers."""

    def given(self, values: Array | None) -> list[dict[str, Array]]:
        """What to feed beside the tokens of one row, if anything."""
        return [] if self.entry is None or values is None else [{self.entry: values}]


def whole(
    folder: Path, opener: Callable[[Path, Sequence[str], Sequence[str]], Engine], sealed: bool = False
) -> list[Segment]:
    return [Segment("the engine", None, LOGITS, lambda probes, given: opener(folder, probes, given), sealed)]


def layer_by_layer(folder: Path, info: EngineInfo) -> list[Segment]:
    """Embedding, layers, head: each opened with what it needs of the graph and of the weights alone."""
    states = ["embedding.output", *(f"layers.{number}.output" for number in range(info.num_layers))]
    titles = ["the embedding", *(f"layer {number}" for number in range(info.num_layers)), "the head"]
    entries, exits = [None, *states], [*states, LOGITS]
    return [
        Segment(title, entry, exit, _part(folder, entry, exit))
        for title, entry, exit in zip(titles, entries, exits, strict=True)
    ]


def _part(folder: Path, entry: str | None, exit: str) -> Open:
    def opened(probes: Sequence[str], given: Sequence[str]) -> Engine:
        from ernie_export.engine.part import GraphPart

        shown, fed = dict.fromkeys([*probes, exit]), dict.fromkeys([*given, *([entry] if entry else [])])
        return GraphPart(folder, list(shown), list(fed))

    return opened


@dataclass
class Want:
    """The reference's values of one segment."""

    entry: Array | None
    """[S,H] of the first window, where the segment begins with a state."""
    states: States
    """Of the first window, in the graph's order."""
    routing: dict[int, Routing]
    """By layer, of all windows."""
    logits: Callable[[int], Array] | None
    """Of a window, [S,V]; where the segment ends with them, and until the next is asked for."""


def wanted_by_layer(recording: Recording) -> Generator[Want]:
    """For the segments of `layer_by_layer`; each is computed or read when it is asked for."""
    hidden = recording.embedded
    yield Want(None, {"embedding.output": hidden[0]}, {}, None)
    for number, record in enumerate(recording.layers()):
        routing = {number: record.routing} if record.routing else {}
        yield Want(hidden[0], record.states, routing, None)
        hidden = record.hidden
    with recording.reference.head() as head:
        states = {"norm.output": head.norm(hidden[0]), LOGITS: head.logits(hidden[0])}
        yield Want(hidden[0], states, {}, lambda window: head.logits(hidden[window]))


def wanted_at_once(recording: Recording) -> Generator[Want]:
    """For the one segment of `whole`."""
    states: dict[str, Array] = {}
    routing: dict[int, Routing] = {}
    for want in wanted_by_layer(recording):
        states |= want.states
        routing |= want.routing
        if want.logits:
            yield Want(None, states, routing, want.logits)
