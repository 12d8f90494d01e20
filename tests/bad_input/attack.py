"""What an attack is, and what it is made from: small checkpoints, recipes and bundles to be broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.checkpoint import embedded
from ernie_export.recipe import Recipe
from tests.checkpoint.conftest import TINY, Folder

Arguments = list[str | Path]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Place:
    """An empty folder, in which an attack lays out its files."""

    root: Path
    bundle_source: Callable[[], Path]

    @property
    def output(self) -> Path:
        return self.root / "out" / "bundle"

    def tiny(self, **fields: Any) -> Folder:
        """A checkpoint of three layers, not yet written."""
        return Folder(self.root / "model", TINY | fields)

    def tiny_with(self, **fields: Any) -> Path:
        """A whole one, whose config.json then says something else of it. A field that is None is left out."""
        folder = self.tiny().write()
        config = {name: value for name, value in (TINY | fields).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def nano(self) -> Path:
        """ernie-nano; its weights are a link, as in the cache of Hugging Face."""
        folder = self.root / "nano"
        folder.mkdir()
        for source in embedded.folder().iterdir():
            if source.name == WEIGHTS:
                (folder / source.name).symlink_to(source)
            else:
                shutil.copyfile(source, folder / source.name)
        return folder

    def tiny_with_tokenizer(self, **fields: Any) -> Path:
        """A checkpoint of three layers with ernie-nano's tokenizer."""
        folder = self.tiny(vocab_size=1536, **fields).write()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(embedded.folder() / name, folder / name)
        return folder

    def bundle(self) -> Path:
        return Path(shutil.copytree(self.bundle_source(), self.root / "bundle"))

    def recipe(self, old: str, new: str) -> Path:
        """The recipe int4 with one piece of its text replaced."""
        text = Recipe.find("int4").to_toml()
        assert old in text
        path = self.root / "recipe.toml"
        path.write_text(text.replace(old, new, 1))
        return path

    def build(self, checkpoint: Path, *more: str | Path) -> Arguments:
        return ["build", checkpoint, "--target", "cpu", "--output", self.output, *more]


Layout = Callable[[Place], Arguments]


@dataclass(frozen=True)
class Attack:
    name: str
    lay_out: Layout
    """Writes the files, and returns the command line that meets them."""
    exit_code: int
    leaves_partial: bool
    """The work had begun when it was found, and can be resumed."""
    like: str
    """The attack before it that has the same cause, and so the same answer; mostly there is none."""
    under: tuple[str, ...]
    """A command that runs the command line in a process of its own, with something taken from it."""
    changes: bool = False
    """What happens on the way changes the files that were laid out."""


class Attacks(list[Attack]):
    """Attacks of one kind."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def add(
        self,
        name: str,
        exit_code: int = 2,
        leaves_partial: bool = False,
        like: str = "",
        under: tuple[str, ...] = (),
        changes: bool = False,
    ) -> Callable[[Layout], None]:
        def register(lay_out: Layout) -> None:
            self.append(Attack(name, lay_out, exit_code, leaves_partial, like, under, changes))

        return register


def edit_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON object; None removes one."""
    content = json.loads(path.read_bytes()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def flip(path: Path, at: int) -> None:
    """Change one bit of the byte at `at`."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
