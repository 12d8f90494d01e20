"""The weight files: where each initializer of the graph lies, and where its values come from in the checkpoint.

A file per decoder layer, and one each for embedding, head (with the final norm) and RoPE tables, so
that two versions of a model share the files that are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export import regular_file
from ernie_export.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import TensorProto

    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.recipe import PartFormat, Parts

    Array = NDArray[Any]

FOLDER = "weights"
#: Large tensors begin on a page, so that a runtime can map them; small ones only on a cache line.
PAGE, LINE, LARGE = 4096, 64, 65536

#: Names below a layer: ours → the checkpoint's.
LAYER_SOURCES = {
    "input_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "shared.gate": "mlp.shared_experts.gate_proj",
    "shared.up": "mlp.shared_experts.up_proj",
    "shared.down": "mlp.shared_experts.down_proj",
    "router": "mlp.gate",
}
BIAS_SOURCE = "mlp.moe_statics.e_score_correction_bias"


@dataclass(frozen=True)
class Stored:
    """One initializer in a weight file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class WeightFile:
    path: str
    """Relative to the bundle, with forward slashes."""
    tensors: tuple[Stored, ...]

    @property
    def size(self) -> int:
        last = self.tensors[-1]
        return last.offset + last.nbytes


def file_of(name: str) -> str:
    stem, *rest = name.split(".")
    if stem == "layers":
        return f"{FOLDER}/layer-{int(rest[0]):03d}.bin"
    return f"{FOLDER}/{'head' if stem == 'norm' else stem}.bin"


def layout(initializers: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> list[WeightFile]:
    """Lay every initializer (name → dtype, shape) into its file, in the order of the graph."""
    files: dict[str, list[Stored]] = {}
    for name, (dtype, shape) in initializers.items():
        tensors = files.setdefault(file_of(name), [])
        end = tensors[-1].offset + tensors[-1].nbytes if tensors else 0
        align = PAGE if math.prod(shape) * dtype.itemsize >= LARGE else LINE
        tensors.append(Stored(name, dtype, shape, -(-end // align) * align))
    return [WeightFile(path, tuple(tensors)) for path, tensors in files.items()]


def read_layout(graph: Path) -> list[WeightFile]:
    """The weight files that a graph on disk refers to.

    Raises:
        UserError: it is no ONNX graph, or its weights do not lie in files of their own, inside the bundle.
    """
    files: dict[str, list[Stored]] = {}
    for initializer in read_initializers(graph):
        path, stored = place_of(initializer, graph)
        files.setdefault(path, []).append(stored)
    return [WeightFile(path, tuple(sorted(found, key=lambda s: s.offset))) for path, found in files.items()]


def read_initializers(graph: Path) -> list[TensorProto]:
    """The weights of a graph on disk, without their bytes; UserError where it is no graph, or has none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        found = list(onnx.load_model_from_string(regular_file.read(graph)).graph.initializer)
    except DecodeError as error:
        raise _damaged(graph, "it is no ONNX graph") from error
    if not found:
        raise _damaged(graph, "it has no weights")
    return found


def _damaged(graph: Path, why: object) -> UserError:
    return UserError(f"{graph} is damaged ({why})", "Fetch or build the bundle again.")


def place_of(initializer: TensorProto, graph: Path) -> tuple[str, Stored]:
    """The file that an initializer lies in, and where; UserError where it can lie in none."""
    try:
        return _place(initializer)
    except (ValueError, LookupError) as error:
        raise _damaged(graph, error) from error


def _place(initializer: TensorProto) -> tuple[str, Stored]:
    from onnx.helper import tensor_dtype_to_np_dtype

    name = initializer.name
    place = {entry.key: entry.value for entry in initializer.external_data}
    if not all(isinstance(text, str) for text in (name, *place, *place.values())):
        raise ValueError("a name in it is not UTF-8")
    if not place.keys() >= {"location", "offset"}:
        raise ValueError(f"{name} does not lie in a weight file")
    where = PurePosixPath(place["location"])
    if where.is_absolute() or not where.parts or ".." in where.parts or "\0" in place["location"]:
        raise ValueError(f"{name} lies in {place['location']!r}, outside the bundle")
    dtype = np.dtype(tensor_dtype_to_np_dtype(initializer.data_type))
    stored = Stored(name, dtype, tuple(initializer.dims), int(place["offset"]))
    if stored.offset < 0 or any(size < 0 for size in stored.shape):
        raise ValueError(f"{name} has an offset or a size below zero")
    return place["location"], stored


#: What the name of a matrix holds behind its layer → the part of the recipe that says its format.
RECIPE_PARTS = {
    "embedding": "embedding",
    "head": "head",
    "attention": "attention",
    "mlp": "dense",
    "shared": "shared",
    "experts": "experts",
}


def form_of(name: str, parts: Parts) -> PartFormat | None:
    """The recipe's format for an initializer; None for what always stays fp32."""
    stem, *rest = name.split(".")
    layer = int(rest[0]) if stem == "layers" else None
    part = RECIPE_PARTS.get(stem if layer is None else rest[1])
    return parts.of(part, layer) if part else None


def sources_of(file: WeightFile, checkpoint: Checkpoint) -> list[str]:
    """The checkpoint's names of all tensors that go into a file."""
    stem = Path(file.path).stem
    if stem.startswith("layer-"):
        return checkpoint.sources(f"model.layers.{int(stem.removeprefix('layer-'))}")
    if stem not in ("embedding", "head"):
        return []
    named = [stored.name for stored in file.tensors if not stored.name.endswith("scales")]
    return [source_of(name, checkpoint) for name in named]


def source_of(name: str, checkpoint: Checkpoint) -> str:
    """The checkpoint's name of a plain tensor."""
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        if rest == "router.bias":
            return f"model.layers.{layer}.{BIAS_SOURCE}"
        return f"model.layers.{layer}.{LAYER_SOURCES[rest.removesuffix('.weight')]}.weight"
    tied = checkpoint.config.tie_word_embeddings
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}.get(
        name, head
    )


def plain(stored: Stored, checkpoint: Checkpoint) -> Array:
    """What is stored as fp32 as it is: norms, routers and their bias, RoPE tables."""
    if stored.name.startswith("rope."):
        return rope_table(stored, checkpoint)
    source = source_of(stored.name, checkpoint)
    values = checkpoint.array(source).reshape(stored.shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{source} holds NaN or infinity", "Fetch the checkpoint again.")
    return values


def rope_table(stored: Stored, checkpoint: Checkpoint) -> Array:
    """cos or sin of position · θ^(−2j/D), [positions, D/2]; all in fp32 as the reference computes it."""
    positions, half = stored.shape
    exponents = np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half)
    frequencies = np.float32(1) / np.power(np.float32(checkpoint.config.rope_theta), exponents)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    return (np.cos if stored.name == "rope.cos" else np.sin)(angles)


def matrix_sources(name: str, checkpoint: Checkpoint) -> Iterator[tuple[int | None, list[str]]]:
    """What one initializer is made of, one after the other: the number of the expert, or None where it is no
    stack of experts, and the names of the tensors in the checkpoint that it is read from."""
    if name.startswith("rope."):
        yield None, []
    elif ".experts." not in name:
        yield None, [source_of(name, checkpoint)]
    else:
        layer, kinds = int(name.split(".")[1]), ("down",) if name.endswith(".down") else ("gate", "up")
        for expert in range(checkpoint.config.moe_num_experts):
            yield expert, checkpoint.expert_sources(layer, expert, kinds)


def expert_matrix(name: str, expert: int, checkpoint: Checkpoint) -> tuple[str, Array]:
    """What it is for a person, and [N, K]: gate and up have their rows interleaved."""
    layer = int(name.split(".")[1])
    weights, source = checkpoint.expert(layer, expert), f"expert {expert} of layer {layer}"
    if name.endswith(".down"):
        return source, weights.down
    width, hidden = weights.gate.shape
    both = np.empty((width, 2, hidden), weights.gate.dtype)
    both[:, 0], both[:, 1] = weights.gate, weights.up
    return source, both.reshape(2 * width, hidden)


def matrices(name: str, checkpoint: Checkpoint) -> Iterator[tuple[str, Array]]:
    """(name in the checkpoint, [N, K]) of what one initializer is made of: one matrix, or one per expert."""
    for expert, sources in matrix_sources(name, checkpoint):
        if expert is None:
            yield sources[0], checkpoint.array(sources[0])
        else:
            yield expert_matrix(name, expert, checkpoint)
