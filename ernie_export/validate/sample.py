"""What both sides are given: windows of a text that the model was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ernie_export.errors import UserError
from ernie_export.generate.windows import Windows, spread

HELD_OUT = Path(__file__).parent / "heldout.txt"


@dataclass(frozen=True)
class Sample:
    """How much to try. Defaults: enough to see a fault, quick enough to be run after every build."""

    windows: int = 8
    window_tokens: int = 512
    prompts: int = 4
    prompt_tokens: int = 32
    new_tokens: int = 64
    """Tokens of each greedy continuation."""
    decode_tokens: int = 64
    """Tokens that are fed at once and again one by one."""
    batch: int = 4
    """Rows that are run together and again alone."""
    text: Path = HELD_OUT

    def __post_init__(self) -> None:
        for field, least in (("windows", 1), ("window_tokens", 2), ("prompts", 1), ("prompt_tokens", 1),
                             ("new_tokens", 1), ("decode_tokens", 2), ("batch", 1)):  # fmt: skip
            if getattr(self, field) < least:
                raise UserError(
                    f"A sample cannot have {field} = {getattr(self, field)}", f"Give {least} or more."
                )

    def within(self, context: int, rows: int | None = None) -> Sample:
        """The same sample, made to fit a cache of `context` tokens, and of so many rows."""
        prompt = min(self.prompt_tokens, max(1, context // 2))
        return Sample(
            windows=self.windows,
            window_tokens=min(self.window_tokens, context),
            prompts=self.prompts,
            prompt_tokens=prompt,
            new_tokens=min(self.new_tokens, context - prompt),
            decode_tokens=min(self.decode_tokens, context),
            batch=min(self.batch, rows or self.batch),
            text=self.text,
        )


def text_windows(sample: Sample, encode: Callable[[str], list[int]]) -> Windows:
    """Windows spread evenly over the sample's text.

    Raises:
        UserError: the text cannot be read, or is shorter than one window.
    """
    return spread(sample.text, encode, sample.windows, sample.window_tokens, sample.window_tokens)
