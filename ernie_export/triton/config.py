"""config.pbtxt for Triton's ONNX Runtime backend, of a graph's own inputs and outputs, and for its Python backend.

Of a graph the KV cache is Triton's: a state of the sequence that a request belongs to, all zeros at its start, of a
fixed length, read as past and written as present.  Everything else is what a client sends and gets.  Of an engine
the cache is its session's (serving.py), and Triton tells which sequence a request belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ernie_export.names import IDS, LOGITS, PAST, PRESENT
from ernie_export.triton import serving

if TYPE_CHECKING:
    import onnx

Kind = Literal["KIND_CPU", "KIND_GPU"]
#: Triton's words for ONNX's types, by their number.
TYPES = {1: "TYPE_FP32", 7: "TYPE_INT64", 10: "TYPE_FP16"}
#: After so many microseconds without a request a sequence is given up, and its cache with it.
IDLE = 60_000_000


@dataclass(frozen=True)
class Binding:
    """An input or output of the graph."""

    name: str
    type: str
    dims: tuple[int, ...]
    """Without the batch; −1: any."""


def bindings(values: Any) -> list[Binding]:
    """Of a graph's inputs or outputs, in their order."""
    return [
        Binding(
            value.name,
            TYPES[value.type.tensor_type.elem_type],
            tuple(
                size.dim_value if size.HasField("dim_value") else -1
                for size in value.type.tensor_type.shape.dim[1:]
            ),
        )
        for value in values
    ]


class Word(str):
    """A name of the schema's own, which is written without quotes."""


def model_config(name: str, graph: onnx.ModelProto, context: int, sequences: int, kind: Kind) -> str:
    """The configuration in protobuf's text form.

    Args:
        context: tokens of the cache of each sequence.
        sequences: how many have a cache at once.
    """
    inputs, outputs = bindings(graph.graph.input), bindings(graph.graph.output)
    config: dict[str, Any] = {
        "name": name,
        "backend": "onnxruntime",
        # A prompt is read row by row: attention takes no batch of several tokens over a filled cache.
        "max_batch_size": 1,
        "input": [described(each) for each in inputs if not each.name.startswith(PAST)],
        "output": [described(each) for each in outputs if not each.name.startswith(PRESENT)],
        "instance_group": [{"kind": Word(kind), "count": 1}],
        "sequence_batching": {
            "max_sequence_idle_microseconds": IDLE,
            "oldest": {"max_candidate_sequences": sequences},
            "state": [state(each, context) for each in inputs if each.name.startswith(PAST)],
        },
    }
    return "\n".join(lines(config)) + "\n"


def engine_config(name: str, vocab_size: int, context: int, sequences: int) -> str:
    """For serving.py."""
    config: dict[str, Any] = {
        "name": name,
        "backend": "python",
        "max_batch_size": sequences,
        "input": [described(Binding(IDS, "TYPE_INT64", (-1,)))],
        "output": [described(Binding(LOGITS, "TYPE_FP32", (1, vocab_size)))],
        # The engine is built for one GPU, and its session has one cache.
        "instance_group": [{"kind": Word("KIND_GPU"), "count": 1, "gpus": (0,)}],
        "sequence_batching": {
            "max_sequence_idle_microseconds": IDLE,
            "control_input": [
                flag(serving.START, "CONTROL_SEQUENCE_START"),
                flag(serving.END, "CONTROL_SEQUENCE_END"),
                control(serving.SEQUENCE, "CONTROL_SEQUENCE_CORRID", {"data_type": Word("TYPE_UINT64")}),
            ],
            "oldest": {"max_candidate_sequences": sequences},
        },
        "parameters": [
            {"key": key, "value": {"string_value": str(value)}}
            for key, value in ((serving.CONTEXT, context), (serving.SEQUENCES, sequences))
        ],
    }
    return "\n".join(lines(config)) + "\n"


def flag(name: str, kind: str) -> dict[str, Any]:
    return control(name, kind, {"int32_false_true": (0, 1)})


def control(name: str, kind: str, form: dict[str, Any]) -> dict[str, Any]:
    """What Triton itself tells with each request."""
    return {"name": name, "control": [{"kind": Word(kind), **form}]}


def described(each: Binding) -> dict[str, Any]:
    return {"name": each.name, "data_type": Word(each.type), "dims": each.dims}


def state(past: Binding, context: int) -> dict[str, Any]:
    heads, _, width = past.dims
    form = {"data_type": Word(past.type), "dims": (heads, context, width)}
    return {
        "input_name": past.name,
        "output_name": PRESENT + past.name.removeprefix(PAST),
        **form,
        "initial_state": [{"name": "empty", "zero_data": True, **form}],
        "use_same_buffer_for_input_output": True,
    }


def lines(message: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield f"{indent}{key} {{"
                yield from lines(each, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {spelled(each)}"


def spelled(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return json.dumps(value)
