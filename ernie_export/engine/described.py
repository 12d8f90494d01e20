"""engine.json where there is no pydantic to read it, and whether it describes what a runtime has opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from ernie_export.errors import UserError
from ernie_export.names import PAST

if TYPE_CHECKING:
    from ernie_export.engine.info import EngineInfo


def require_described(path: Path, info: EngineInfo, shapes: Mapping[str, Sequence[Any]]) -> None:
    """Compare the engine.json at `path` with the inputs and outputs, by name.

    Raises:
        UserError: it describes something else.
    """
    keys = [shape for name, shape in shapes.items() if name.startswith(PAST) and name.endswith(".key")]
    logits = shapes.get("logits", [None])
    for what, said, is_so in (
        ("layers", info.num_layers, {len(keys)}),
        ("key-value heads", info.num_key_value_heads, {shape[1] for shape in keys}),
        ("numbers a head", info.head_dim, {shape[-1] for shape in keys}),
        ("tokens in the vocabulary", info.vocab_size, {logits[-1]}),
    ):
        if is_so != {said}:
            raise UserError(
                f"{path} says {said} {what}, the graph has {', '.join(map(str, is_so))}",
                "Fetch or build the bundle again.",
            )


def as_info(content: Mapping[str, Any]) -> EngineInfo:
    """Its fields as attributes. `build` checked it when it wrote it, and digests say that it did."""
    requires = content.get("requires") or {}
    binaries = {
        name: SimpleNamespace(**requires[name]) if requires.get(name) else None
        for name in ("engine", "prefill", "plugin")
    }
    needs = SimpleNamespace(**{**requires, **binaries})
    return cast("EngineInfo", SimpleNamespace(**{**content, "requires": needs}))
