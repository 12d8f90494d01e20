"""What every engine can do, whatever runtime is behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ernie_export import regular_file
from ernie_export.errors import UserError

Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class EngineInfo(BaseModel):
    """`engine.json`: what a runtime must know to open and drive the graph."""

    FILE: ClassVar[str] = "engine.json"
    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: str
    graph: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
    """A file in the folder itself."""
    num_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    vocab_size: Size
    max_context: Size
    moe_layers: tuple[Count, ...]
    num_experts: Count
    experts_per_token: Count

    @model_validator(mode="after")
    def _consistent(self) -> EngineInfo:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads is not a multiple of num_key_value_heads")
        if any(layer >= self.num_layers for layer in self.moe_layers):
            raise ValueError("moe_layers names a layer that is not there")
        if self.experts_per_token > self.num_experts:
            raise ValueError("experts_per_token is more than num_experts")
        return self

    @classmethod
    def read(cls, folder: Path) -> EngineInfo:
        try:
            return cls.model_validate_json(regular_file.read(folder / cls.FILE))
        except FileNotFoundError as error:
            raise UserError(
                f"{folder} holds no {cls.FILE}",
                "Name the folder of a bundle that `ernie-export build` wrote.",
            ) from error
        except OSError as error:
            raise UserError(
                f"{folder / cls.FILE} cannot be read ({error.strerror})", "Fetch or build the bundle again."
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ": ".join(
                [".".join(map(str, first["loc"]))] * bool(first["loc"])
                + [first["msg"].removeprefix("Value error, ")]
            )
            raise UserError(
                f"{folder / cls.FILE} is damaged: {where}",
                "Fetch or build the bundle again.",
            ) from error


@dataclass
class Fed:
    """What came out of one `feed`, row by row."""

    logits: list[np.ndarray[Any, Any]]
    """[n, V] float32 each; n = tokens fed to the row with `all_logits`, else 1 (0 for an empty row)."""
    probes: list[dict[str, np.ndarray[Any, Any]]]
    """name → [tokens fed, …] each; empty unless the engine was opened with probes."""


class Session(Protocol):
    """A batch of sequences and their KV cache."""

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache, per row."""
        ...

    def feed(
        self,
        rows: Sequence[Sequence[int]],
        all_logits: bool = False,
        given: Sequence[Mapping[str, np.ndarray[Any, Any]]] = (),
    ) -> Fed:
        """Append `rows[b]` to row b (rows may differ in length, and be empty) and run the model.

        `given` holds for each row the values [tokens fed, …] that the engine was opened to be given.

        Raises:
            UserError: a row would outgrow the cache, or a token id is outside the vocabulary.
        """
        ...

    def truncate(self, row: int, length: int) -> None:
        """Forget what stands in the cache of `row` behind its first `length` tokens."""
        ...


class Engine(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    def start(self, batch: int = 1, max_length: int | None = None) -> Session:
        """An empty cache of `max_length` (default: the engine's whole context) for `batch` rows."""
        ...
