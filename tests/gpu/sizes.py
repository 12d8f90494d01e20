"""The sizes that are tried: those of the 21B, or tiny ones, for the emulation and the sanitizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    hidden: int
    width: int
    """Of an expert."""
    experts: int
    k: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    decode: tuple[int, ...]
    """Tokens of a step, at most 16."""
    prefill: tuple[int, ...]
    """More than 16."""
    copied: int
    """Bytes of the copy that says what the memory can do."""
    multiplied: int
    """N of the N·N·N product that says what the tensor cores can do."""


TRUE = Sizes(
    hidden=2560,
    width=1536,
    experts=64,
    k=6,
    heads=20,
    kv_heads=4,
    head_dim=128,
    context=4096,
    decode=(1, 2, 4, 8, 16),
    prefill=(128, 512, 2048),
    copied=1 << 30,
    multiplied=8192,
)
TINY = Sizes(
    hidden=128,
    width=128,
    experts=8,
    k=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    context=96,
    decode=(1, 2),
    prefill=(20,),
    copied=1 << 20,
    multiplied=64,
)
