"""engine.json: what a runtime must know to open and drive the graph of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ernie_export import regular_file
from ernie_export.engine.requires import Requires
from ernie_export.errors import UserError

Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class EngineInfo(BaseModel):
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
    requires: Requires | None = None
    """Of the machine; None in bundles from before it was noted."""

    @model_validator(mode="after")
    def _consistent(self) -> EngineInfo:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads is not a multiple of num_key_value_heads")
        if any(layer >= self.num_layers for layer in self.moe_layers):
            raise ValueError("moe_layers names a layer that is not there")
        if self.experts_per_token > self.num_experts:
            raise ValueError("experts_per_token is more than num_experts")
        return self

    def to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

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
