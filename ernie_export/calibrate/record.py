"""calibration.json: on what a bundle was calibrated, and what that did to each tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ernie_export import regular_file
from ernie_export.errors import UserError
from ernie_export.generate.windows import Windows
from ernie_export.recipe import Calibration


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibratedTensor(_Record):
    name: Annotated[str, Field(pattern=r"^(layers\.[0-9]{1,4}\.[a-z_.]+|head\.weight)$")]
    """The graph's: `layers.3.experts.gate_up`."""
    error: float
    """Of what the tensor gives on the calibration text, over the same error of rounding to nearest; experts
    together. 1 is no gain."""
    tokens: int
    """It was calibrated on; of experts, the fewest of those that were calibrated."""
    rounded: dict[int, int]
    """Experts that were rounded to nearest → the tokens that were routed to them."""


class CalibrationRecord(_Record):
    FILE: ClassVar[str] = "calibration.json"

    schema_version: Literal[1] = 1
    settings: Calibration
    text: str
    """The name of the file."""
    sha256: str
    """Over the token ids of all windows, as little-endian int64."""
    tensors: list[CalibratedTensor]

    @classmethod
    def of(cls, settings: Calibration, text: Windows, tensors: list[CalibratedTensor]) -> CalibrationRecord:
        return cls(settings=settings, text=text.source, sha256=text.sha256, tensors=tensors)

    @classmethod
    def read(cls, folder: Path) -> CalibrationRecord | None:
        """That of a bundle; None where nothing was calibrated.

        Raises:
            UserError: it cannot be read, or is none.
        """
        path = folder / cls.FILE
        try:
            return cls.model_validate_json(regular_file.read(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = str(error.strerror)
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UserError(
            f"The record of the calibration {path} is damaged ({reason})", "Fetch or build the bundle again."
        )

    def render(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

    def summary(self) -> str:
        """One sentence, and which experts were not reached."""
        told = f"Calibrated by {self.settings.method} on {self.settings.tokens:,} tokens of {self.text}"
        of_layers = [tensor for tensor in self.tensors if tensor.name.startswith("layers.")]
        missed = {(int(each.name.split(".")[1]), expert) for each in of_layers for expert in each.rounded}
        if not missed:
            return told
        layers: dict[int, list[int]] = {}
        for layer, expert in sorted(missed):
            layers.setdefault(layer, []).append(expert)
        which = "; ".join(f"layer {layer}: {', '.join(map(str, of))}" for layer, of in layers.items())
        return (
            f"{told}; {len(missed)} experts that fewer than {self.settings.least_tokens} of them were routed to "
            f"are rounded to nearest ({which})"
        )
