"""Faults of what runs the graph: how its cache and its batches are driven, and how text becomes tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ernie_export.engine.onnxruntime import OnnxRuntimeSession
from tests.validate.fault import INT4, Fault
from tests.validate.planting import driven


class OverwritesTheLast(OnnxRuntimeSession):
    """What comes over a filled cache is written one position too early."""

    def feed(self, rows: Any, all_logits: bool = False, given: Any = ()) -> Any:
        self.tokens = [tokens[:-1] for tokens in self.tokens]
        return super().feed(rows, all_logits, given)


class PaddedOnTheLeft(OnnxRuntimeSession):
    """In a batch, a shorter row decodes at the position of the longest."""

    def feed(self, rows: Any, all_logits: bool = False, given: Any = ()) -> Any:
        if len(rows) > 1 and all(len(row) <= 1 for row in rows):
            longest = max(self.lengths)
            self.tokens = [tokens + [0] * (longest - len(tokens)) for tokens in self.tokens]
        return super().feed(rows, all_logits, given)


class RowsMixedUp(OnnxRuntimeSession):
    def feed(self, rows: Any, all_logits: bool = False, given: Any = ()) -> Any:
        fed = super().feed(rows, all_logits, given)
        if len(rows) > 1 and all(len(row) == 1 for row in rows):
            fed.logits.reverse()
        return fed


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"the"', '"teh"', 1), "utf-8")


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


CACHE, BATCH = "operators.cache_error", "batch.max_difference"

FAULTS = [
    Fault("KV cache off by one position", CACHE, "layers.0.attention.cache", opener=driven(OverwritesTheLast)),
    Fault("shorter rows decode at the longest's position", BATCH, "the batch", opener=driven(PaddedOnTheLeft)),
    Fault("rows of a batch mixed up", BATCH, "the batch", opener=driven(RowsMixedUp)),
    Fault("the wrong tokenizer", "error", "tokenizer.json", other_tokenizer, INT4),
    Fault("the wrong chat template", "error", "chat_template.jinja", other_template, INT4),
]  # fmt: skip
