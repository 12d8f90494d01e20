"""A bundle's engine as a model of Triton's Python backend: what runs inside the server.

Sequences of Triton's are rows of one session: its cache is the engine's own, and sequences that decode at once are
one run.  A row of which nobody hears any more goes to the next sequence that needs one.  Nothing is needed
here but numpy and what the engine needs.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export import regular_file
from ernie_export.engine.compatibility import require_compatible
from ernie_export.engine.described import as_info
from ernie_export.engine.interface import check_rows
from ernie_export.engine.tensorrt import TensorRTEngine
from ernie_export.errors import ErnieExportError, UserError
from ernie_export.names import IDS, LOGITS

if TYPE_CHECKING:
    from ernie_export.engine.interface import Session

BUNDLE, INFO = "bundle", "engine.json"
START, END, SEQUENCE = "START", "END", "CORRID"
CONTEXT, SEQUENCES = "context", "sequences"
"""Parameters of the configuration."""


class TritonPythonModel:
    """Of the name, and with the methods, that the Python backend asks for."""

    def initialize(self, arguments: dict[str, str]) -> None:
        self.triton: Any = importlib.import_module("triton_python_backend_utils")
        said = json.loads(arguments["model_config"])["parameters"]
        context, rows = (int(said[name]["string_value"]) for name in (CONTEXT, SEQUENCES))
        folder = Path(arguments["model_repository"]) / arguments["model_version"] / BUNDLE
        try:
            info = as_info(json.loads(regular_file.read(folder / INFO)))
            require_compatible(folder, info)
            self.rows = Rows(TensorRTEngine(folder, info).start(rows, context), rows)
        except ErnieExportError as error:
            raise self.triton.TritonModelException(str(error)) from error
        self.context, self.vocab_size = context, info.vocab_size

    def execute(self, requests: list[Any]) -> list[Any]:
        """Each is some tokens of a sequence, and gets the logits of the last one."""
        asked = [self._read(request) for request in requests]
        fed: list[list[int]] = [[] for _ in self.rows.session.lengths]
        answers: list[Any] = [None] * len(asked)
        places = {}
        for at, (sequence, starts, tokens) in enumerate(asked):
            try:
                if starts:  # what was before is over, even where this is refused
                    self.rows.give_back(sequence)
                self._require(tokens, 0 if starts else self.rows.length(sequence))
                row = self.rows.of(sequence)
                fed[row], places[at] = tokens, row
            except ErnieExportError as error:
                answers[at] = self._refused(error)
        try:
            logits = self.rows.session.feed(fed).logits if places else []
            for at, row in places.items():
                answers[at] = self._answer(logits[row])
        except ErnieExportError as error:
            for at in places:  # how far their rows came is not known
                answers[at] = self._refused(error)
                self.rows.give_back(asked[at][0])
        for (sequence, _, _), request in zip(asked, requests, strict=True):
            if self._flag(request, END):
                self.rows.give_back(sequence)
        return answers

    def _read(self, request: Any) -> tuple[int, bool, list[int]]:
        """The sequence, whether it starts, and its new tokens."""
        tokens = self._value(request, IDS).ravel().tolist()
        return int(self._value(request, SEQUENCE).flat[0]), self._flag(request, START), tokens

    def _value(self, request: Any, name: str) -> Any:
        return self.triton.get_input_tensor_by_name(request, name).as_numpy()

    def _flag(self, request: Any, name: str) -> bool:
        return bool(self._value(request, name).flat[0])

    def _require(self, tokens: list[int], length: int) -> None:
        if not tokens:
            raise UserError("The request has no tokens", f"Send the new ones as {IDS}.")
        check_rows([tokens], [length], self.context, self.vocab_size)

    def _answer(self, logits: Any) -> Any:
        values = np.ascontiguousarray(logits[None, -1:], np.float32)
        return self.triton.InferenceResponse(output_tensors=[self.triton.Tensor(LOGITS, values)])

    def _refused(self, error: ErnieExportError) -> Any:
        return self.triton.InferenceResponse(output_tensors=[], error=self.triton.TritonError(str(error)))


class Rows:
    """Which sequence has which row of a session."""

    def __init__(self, session: Session, count: int):
        self.session = session
        # Rows decode together only if all have a token; what stands in a free row is nobody's.
        session.feed([[0]] * count)
        self.held: OrderedDict[int, int] = OrderedDict()
        """Sequence → row, the one that was heard of last at the end."""
        self.free = list(range(count))

    def length(self, sequence: int) -> int:
        """
        Raises:
            UserError: it has no row.
        """
        if sequence not in self.held:
            raise UserError(
                f"The sequence {sequence} has no cache here: it was given up, or has not begun",
                "Send all of its tokens again, with sequence_start.",
            )
        return self.session.lengths[self.held[sequence]]

    def of(self, sequence: int) -> int:
        """Its own, or an empty one: a free one, or that of the one that has not been heard of for longest."""
        if sequence in self.held:
            row = self.held.pop(sequence)
        else:
            row = self.free.pop(0) if self.free else self.held.popitem(last=False)[1]
            self.session.truncate(row, 0)
        self.held[sequence] = row
        return row

    def give_back(self, sequence: int) -> None:
        if sequence in self.held:
            self.free.append(self.held.pop(sequence))
