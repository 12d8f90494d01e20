"""A recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ernie_export.recipe import Recipe

JSON = False
TOKENS = (b"[parts]", b"[gates]", b"experts = ", b'{ format = "int4", block_size = 128 }', b'"logits.kl_mean"',
          b"max = ", b"min = ", b"context = ", b"batch = ", b'"""', b"'''", b"inf", b"nan", b"[[", b"1979-05-27",
          b"07:32:00Z", b"0x", b"1e400", b"\\u0000", b"true")  # fmt: skip


def seeds() -> Iterator[bytes]:
    for name in Recipe.names():
        yield Recipe.find(name).to_toml().encode()


def parse(data: bytes, folder: Path) -> None:
    path = folder / "recipe.toml"
    path.write_bytes(data)
    recipe = Recipe.read(path)
    path.write_text(recipe.to_toml(), "utf-8")
    assert Recipe.read(path) == recipe
