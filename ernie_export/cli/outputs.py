"""What `--json` prints, where it is not a stage's own model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ernie_export.recipe import Recipe
from ernie_export.stack import Stack
from ernie_export.target import Target


class Output(BaseModel):
    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1


class BuildOutput(Output):
    bundle: str | None
    """None: a gate failed, so there is none."""
    report: str
    verdict: Literal["passed", "failed"]
    reused: bool
    """The same build stood there already."""
    failed_gates: list[str]
    sample: str | None
    """A sentence that the engine generated."""
    kit: bool = False
    """It is a kit: its engine is built on the device, by the kit.pyz in it."""


class GenerateOutput(Output):
    """For one prompt; for several see `BatchOutput`."""

    prompt_ids: list[int]
    token_ids: list[int]
    """What followed the prompt; ends with the stop token where one ended it."""
    text: str
    """What followed the prompt, without special tokens."""
    finish_reason: Literal["stop", "length"]


class BatchOutput(Output):
    """For several prompts, in their order."""

    results: list[GenerateOutput]


class TritonOutput(Output):
    model: str
    """The model's folder in Triton's repository."""
    config: str
    """Its config.pbtxt."""


class TargetsOutput(Output):
    targets: list[Target]
    stacks: list[Stack]
    """What the targets run on."""


class RecipesOutput(Output):
    recipes: list[Recipe]
