"""What a bundle is for: the runtime it runs on and the bodies its operators get."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ernie_export.errors import UserError
from ernie_export.nearest import did_you_mean


class Target(BaseModel):
    """A row of `targets.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    description: str
    runtime: Literal["onnxruntime-cpu"]
    bodies: Literal["onnxruntime"]

    @staticmethod
    def all() -> list[Target]:
        table = tomllib.loads((Path(__file__).parent / "targets.toml").read_text("utf-8"))
        return [Target(name=name, **row) for name, row in table.items()]

    @classmethod
    def find(cls, name: str) -> Target:
        """The target of that name.

        Raises:
            UserError: there is none.
        """
        known = {target.name: target for target in cls.all()}
        if name not in known:
            raise UserError(f"No target is named {name!r}", did_you_mean(name, known))
        return known[name]
