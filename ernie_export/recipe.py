"""What to make of a checkpoint: the format of each part, the context, the gates it must pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ernie_export import toml_file
from ernie_export.errors import UserError
from ernie_export.nearest import did_you_mean

Format = Literal["fp32", "fp16", "int8", "fp8", "nvfp4", "int4"]
BlockSize = Literal[32, 64, 128]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Table(BaseModel):
    """TOML has types of its own, so nothing is converted: a string is never taken for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PartFormat(_Table):
    """How the weights of one part are stored."""

    format: Format
    block_size: BlockSize | None = None
    """Weights along K that share a scale; integer formats only: fp8 has one a row, nvfp4 one for 16."""

    @model_validator(mode="after")
    def _block_size_goes_with_integers(self) -> PartFormat:
        integer = self.format.startswith("int")
        if integer and self.block_size is None:
            raise ValueError(f"{self.format} needs a block_size: 32, 64 or 128")
        if not integer and self.block_size is not None:
            raise ValueError(f"{self.format} has no block_size")
        return self


class LayerParts(_Table):
    """The parts of some layers whose format is not that of the model."""

    experts: PartFormat | None = None
    attention: PartFormat | None = None
    shared: PartFormat | None = None
    dense: PartFormat | None = None

    def given(self) -> dict[str, PartFormat]:
        return {part: form for part, form in self if form is not None}

    @model_validator(mode="after")
    def _says_something(self) -> LayerParts:
        if not self.given():
            raise ValueError(f"it names no part: {', '.join(LayerParts.model_fields)}")
        return self


class Parts(_Table):
    """The parts of the model. The router is missing because it always stays fp32."""

    experts: PartFormat
    attention: PartFormat
    shared: PartFormat
    """The shared experts."""
    dense: PartFormat
    """The MLP of the layers that are not MoE."""
    head: PartFormat
    embedding: PartFormat
    """Formatted as the head and tied to it, both share one copy."""
    layers: dict[Annotated[str, Field(pattern=r"^[0-9]{1,4}(-[0-9]{1,4})?$")], LayerParts] = {}
    """What is otherwise in a layer, `3`, or a range of them, `3-7`, both ends included."""

    @model_validator(mode="after")
    def _each_layer_is_told_once(self) -> Parts:
        told: dict[tuple[int, str], str] = {}
        for key, table in self.layers.items():
            if not layers_of(key):
                raise ValueError(f"layers.{key} is no range: it ends before it begins")
            for layer, part in product(layers_of(key), table.given()):
                if (layer, part) in told:
                    raise ValueError(
                        f"layers.{told[layer, part]} and layers.{key} both say {part} of {layer}"
                    )
                told[layer, part] = key
        return self

    def of(self, part: str, layer: int | None = None) -> PartFormat:
        """The format of a part of that layer, or of the model where the layer has none of its own."""
        if layer is not None:
            for key, table in self.layers.items():
                if layer in layers_of(key) and (form := getattr(table, part)):
                    return cast("PartFormat", form)
        return cast("PartFormat", getattr(self, part))

    def of_model(self) -> dict[str, PartFormat]:
        """By part, without what single layers have."""
        return {part: form for part, form in self if part in PARTS}

    def named(self) -> dict[str, PartFormat]:
        """Every format, by what it is for: `experts`, `experts of layers 3-7`."""
        found = self.of_model()
        for key, table in self.layers.items():
            found |= {
                f"{part} of layer{'s' * ('-' in key)} {key}": form for part, form in table.given().items()
            }
        return found

    def mapped(self, change: Callable[[str, PartFormat], PartFormat]) -> Parts:
        """With another format for each that is named; `change` is given the part and its format."""
        parts = {part: change(part, form) for part, form in self.of_model().items()}
        layers = {
            key: LayerParts(**{part: change(part, form) for part, form in table.given().items()})
            for key, table in self.layers.items()
        }
        return Parts(**parts, layers=layers)


PARTS = tuple(name for name in Parts.model_fields if name != "layers")


@cache
def layers_of(key: str) -> range:
    """`3` or `3-7` → the layers it means."""
    first, _, last = key.partition("-")
    return range(int(first), int(last or first) + 1)


class Calibration(_Table):
    """How a text is used to round the integer formats of the decoder layers for what they are used for."""

    method: Literal["gptq"]
    tokens: Annotated[int, Field(ge=64, le=1 << 20)] = 32768
    """How much of the text is read: windows of `window` tokens, spread evenly over it."""
    window: Annotated[int, Field(ge=2)] = 512
    least_tokens: Annotated[int, Field(ge=1)] = 128
    """An expert that fewer of the tokens are routed to is rounded to nearest."""

    @model_validator(mode="after")
    def _whole_windows(self) -> Calibration:
        if self.tokens % self.window:
            raise ValueError(f"tokens = {self.tokens} is no multiple of window = {self.window}")
        return self


class Gate(_Table):
    """The bounds of one measured number, both included."""

    min: Finite | None = None
    max: Finite | None = None

    @model_validator(mode="after")
    def _some_number_passes(self) -> Gate:
        if self.min is None and self.max is None:
            raise ValueError("a gate needs a min, a max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("no number is at least min and at most max")
        return self


class Recipe(_Table):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    context: Annotated[int, Field(ge=2)] | None = None
    """Most tokens in the cache of a row; None: what the checkpoint promises."""
    bits: Literal["auto"] | None = None
    """`auto`: the bits of the integer formats are chosen anew, for each layer and part, for the budget."""
    budget: str | None = None
    """Memory for the engine, `8 GB`, or a target's name for all that it has; with `bits` alone."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    """Most rows at once: what validation runs, and what an engine of fixed shapes is built for."""
    parts: Parts
    calibration: Calibration | None = None
    """None: every weight is rounded to nearest."""
    gates: dict[str, Gate] = {}
    """Bounds by the name of the measured number, as in a report: `logits.kl_mean`."""

    @model_validator(mode="after")
    def _bits_need_a_budget(self) -> Recipe:
        if (self.bits is None) != (self.budget is None):
            raise ValueError('bits = "auto" and a budget go together: give both or none')
        return self

    @model_validator(mode="after")
    def _something_to_calibrate(self) -> Recipe:
        integer = [name for name, form in self.parts.named().items() if form.block_size]
        if self.calibration and not {*integer} - {"embedding"}:
            raise ValueError("there is nothing to calibrate: no part but the embedding has an integer format")
        return self

    @staticmethod
    def names() -> list[str]:
        """The recipes that come with the package, from the most exact to the smallest."""
        weight = list(get_args(Format))
        found = [path.stem for path in _folder().glob("*.toml")]
        return sorted(found, key=lambda name: (weight.index(name) if name in weight else len(weight), name))

    @classmethod
    def find(cls, name_or_path: str) -> Recipe:
        """The recipe of that name, or in that file.

        Raises:
            UserError: there is none, or the file is no recipe.
        """
        if name_or_path in cls.names():
            return cls.read(_folder() / f"{name_or_path}.toml")
        path = Path(name_or_path)
        if path.suffix == ".toml" or len(path.parts) > 1 or (name_or_path and path.exists()):
            return cls.read(path)
        raise UserError(
            f"No recipe is named {name_or_path!r}",
            did_you_mean(name_or_path, cls.names()) + " Or name a file.",
        )

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """The recipe in a TOML file.

        Raises:
            UserError: the file cannot be read, is not TOML, or says what no recipe can say.
        """
        told = toml_file.read(path, "recipe", f"Name a file, or one of: {', '.join(cls.names())}.")
        try:
            return cls.model_validate(told)
        except ValidationError as error:
            # A misspelt key is told before the key that is missing for it.
            raise _mistake(path, min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")) from error

    def to_toml(self) -> str:
        """The recipe as TOML, that `read` reads back to an equal recipe; the same bytes each time."""
        head = self.model_dump(exclude={"parts", "calibration", "gates"}, exclude_none=True)
        lines = [f"{key} = {_toml(value)}" for key, value in head.items()]
        lines += ["", "[parts]", *_rows(self.parts.of_model())]
        for key in sorted(self.parts.layers, key=lambda key: (layers_of(key).start, key)):
            lines += ["", f"[parts.layers.{key}]", *_rows(self.parts.layers[key].given())]
        if self.calibration:
            lines += ["", "[calibration]"]
            lines += [f"{key} = {_toml(value)}" for key, value in self.calibration.model_dump().items()]
        lines += ["", "[gates]", *_rows(self.gates)]
        return "\n".join(lines) + "\n"


@cache
def _folder() -> Path:
    """`recipes/` stands beside the package in the repository, and inside it once installed."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _rows(tables: Mapping[str, BaseModel]) -> Iterator[str]:
    for key, table in tables.items():
        values = table.model_dump(exclude_none=True).items()
        yield f"{_key(key)} = {{ {', '.join(f'{k} = {_toml(v)}' for k, v in values)} }}"


def _toml(value: str | int | float) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _toml(key)


def _mistake(path: Path, error: ErrorDetails) -> UserError:
    """One of pydantic's errors, in the words of the file."""
    where = ".".join(_key(str(key)) for key in error["loc"])
    if error["type"] == "extra_forbidden":
        *above, key = (str(key) for key in error["loc"])
        return UserError(f"{path}: {where} is no key of a recipe", did_you_mean(key, _fields(above)))
    if error["type"] == "missing":
        return UserError(f"{path}: {where} is missing", "Add it.")
    if error["type"] == "literal_error":
        known = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return UserError(
            f"{path}: {where} cannot be {error['input']!r}", did_you_mean(str(error["input"]), known)
        )
    if error["loc"][-1:] == ("[key]",):
        key = ".".join(map(str, error["loc"][:-1]))
        return UserError(f"{path}: {key} names no layer", "Write a layer, `3`, or a range, `3-7`.")
    if error["type"] in ("model_type", "dict_type"):
        return UserError(f"{path}: {where} is {error['input']!r}", "Write a table: { … }.")
    if error["type"] == "value_error":
        said = [str(path), where, str(error["ctx"]["error"])]
        return UserError(": ".join(filter(None, said)), "Correct the recipe.")
    reason = error["msg"][0].lower() + error["msg"][1:]
    return UserError(f"{path}: {where} is {error['input']!r}: {reason}", "Correct the recipe.")


TABLES: dict[str, type[_Table]] = {"parts": Parts, "calibration": Calibration}


def _fields(above: list[str]) -> list[str]:
    """The keys that the table below `above` may have."""
    if not above:
        return list(Recipe.model_fields)
    if len(above) == 1 and above[0] in TABLES:
        return list(TABLES[above[0]].model_fields)
    if above[:2] == ["parts", "layers"] and len(above) == 3:
        return list(LayerParts.model_fields)
    return list((PartFormat if above[0] == "parts" else Gate).model_fields)
