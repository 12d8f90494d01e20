"""The weight files that a build would write, from the config and the recipe alone.

The graph is not traced for it, so nothing heavy is loaded; the names, dtypes, shapes and their order
are those of `model/ernie.py`, and where they lie in the files is `graph/weights.py`'s own rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ernie_export.errors import UserError
from ernie_export.graph.weights import WeightFile, layout
from ernie_export.quantize.formats import stored_as, stored_names

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.recipe import PartFormat, Parts

    Initializer = tuple[str, tuple[np.dtype[Any], tuple[int, ...]]]

Part = Literal[
    "experts", "attention", "shared", "dense", "embedding", "head", "router", "norms", "rope", "padding"
]
PARTS: tuple[Part, ...] = get_args(Part)
#: What a name of an initializer holds behind its layer, and the part that it belongs to.
PART_OF: dict[str, Part] = {
    "experts": "experts",
    "attention": "attention",
    "shared": "shared",
    "mlp": "dense",
    "router": "router",
    "embedding": "embedding",
    "head": "head",
    "rope": "rope",
}
FP32 = np.dtype(np.float32)


def weight_files(config: ErnieConfig, parts: Parts, context: int) -> list[WeightFile]:
    """The files as `graph/weights.py` lays them out.

    Raises:
        UserError: a matrix has no whole number of blocks.
    """
    return layout(dict(initializers(config, parts, context)))


def initializers(config: ErnieConfig, parts: Parts, context: int) -> Iterator[Initializer]:
    """Name, dtype and shape of every initializer, in the order of the graph."""
    hidden, vocab = config.hidden_size, config.vocab_size
    yield from matrix("embedding.weight", (vocab, hidden), parts.embedding)
    for table in ("cos", "sin"):
        yield f"rope.{table}", (FP32, (context, config.head_dim // 2))
    for index in range(config.num_hidden_layers):
        yield from layer(config, parts, index)
    yield "norm.weight", (FP32, (hidden,))
    if not shares_head(config, parts):
        yield from matrix("head.weight", (vocab, hidden), parts.head)


def shares_head(config: ErnieConfig, parts: Parts) -> bool:
    """Whether the embedding's rows are the head's too: one copy for both."""
    return config.tie_word_embeddings and parts.head == parts.embedding


def layer(config: ErnieConfig, parts: Parts, index: int) -> Iterator[Initializer]:
    hidden, of = config.hidden_size, f"layers.{index}"
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    yield f"{of}.input_norm.weight", (FP32, (hidden,))
    for name, shape in {
        "q": (query, hidden),
        "k": (key_value, hidden),
        "v": (key_value, hidden),
        "o": (hidden, query),
    }.items():
        yield from matrix(f"{of}.attention.{name}.weight", shape, parts.of("attention", index))
    yield f"{of}.post_attention_norm.weight", (FP32, (hidden,))
    if not config.is_moe_layer(index):
        yield from mlp(f"{of}.mlp", hidden, config.intermediate_size, parts.of("dense", index))
        return
    experts, inner = config.moe_num_experts, config.moe_intermediate_size
    yield f"{of}.router.weight", (FP32, (experts, hidden))
    yield f"{of}.router.bias", (FP32, (experts,))
    yield from matrix(f"{of}.experts.gate_up", (experts, 2 * inner, hidden), parts.of("experts", index))
    yield from matrix(f"{of}.experts.down", (experts, hidden, inner), parts.of("experts", index))
    if config.shared_intermediate_size:
        yield from mlp(f"{of}.shared", hidden, config.shared_intermediate_size, parts.of("shared", index))


def mlp(prefix: str, hidden: int, inner: int, form: PartFormat) -> Iterator[Initializer]:
    yield from matrix(f"{prefix}.gate.weight", (inner, hidden), form)
    yield from matrix(f"{prefix}.up.weight", (inner, hidden), form)
    yield from matrix(f"{prefix}.down.weight", (hidden, inner), form)


def matrix(name: str, shape: tuple[int, ...], form: PartFormat) -> Iterator[Initializer]:
    """Weights [..., N, K] in their stored form, and their scales if they have some."""
    try:
        yield from zip(stored_names(name), stored_as(form, shape), strict=False)
    except ValueError as block_size:
        raise UserError(
            f"{name} has rows of {shape[-1]} weights, which is no multiple of the block size {block_size}",
            "Choose another block_size for that part, or a format whose blocks divide its rows, like fp16.",
        ) from None


def part_of(initializer: str) -> Part:
    stem = initializer.split(".")[2 if initializer.startswith("layers.") else 0]
    return PART_OF.get(stem, "norms")


def bytes_by_part(files: list[WeightFile]) -> dict[Part, int]:
    """What each part takes on disk; with the padding that aligns them, all of it."""
    found: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for file in files:
        for stored in file.tensors:
            found[part_of(stored.name)] += stored.nbytes
        found["padding"] += file.size - sum(stored.nbytes for stored in file.tensors)
    return found
