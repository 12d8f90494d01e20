"""What is planned: the part of a recipe and of its use that decides memory and speed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ernie_export.recipe import Parts


class Setting(BaseModel):
    model_config = ConfigDict(frozen=True)

    parts: Parts
    context: int
    """Most tokens in the cache of a row."""
    batch: int
    """Rows at once."""
    prompt: int
    """Most tokens of a row that are fed in one call."""
    native: bool = False
    """Whether the machine has the native operators of engine/native; they take over what suits them."""
