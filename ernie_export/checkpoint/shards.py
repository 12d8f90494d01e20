"""Which files of a checkpoint folder hold the weights, and which tensor lies in which."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ernie_export.checkpoint.json_file import read_object
from ernie_export.checkpoint.safetensors import TensorFile, TensorInfo
from ernie_export.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
LONGEST = 200
"""Characters of a name that are shown."""
AGAIN = "Download the checkpoint again, all files from one release"


@dataclass
class Shards:
    """The weight files; with an index, the shard that each tensor is promised in."""

    paths: list[Path]
    index: Path | None = None
    promised: dict[str, Path] = field(default_factory=dict)


def locate(folder: Path) -> Shards:
    """The weight files as transformers would choose them; UserError when there are none to read."""
    if (folder / SINGLE).is_file():
        return Shards([folder / SINGLE])
    if (folder / INDEX).is_file():
        return _from_index(folder)
    if os.path.lexists(folder / SINGLE):  # no file: a folder, or a link to nothing; the reader says which
        return Shards([folder / SINGLE])
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run any code when it is opened",
            f"Where you trust it, convert it: AutoModelForCausalLM.from_pretrained({str(folder)!r})"
            f'.save_pretrained("converted") with transformers writes safetensors',
        )
    raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}", AGAIN)


def _from_index(folder: Path) -> Shards:
    index = folder / INDEX
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} holds no weight_map", AGAIN)
    promised: dict[str, Path] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file:
            raise UserError(f"{index} names no file for {name}", AGAIN)
        where = PurePosixPath(file)
        # A link is followed (the Hugging Face cache is made of links); a name must not lead out.
        if where.is_absolute() or ".." in where.parts:
            raise UserError(f"{index} names {file}, which lies outside the folder", AGAIN)
        promised[name] = folder / file
    shards = Shards(sorted(set(promised.values())), index, promised)
    missing = [path.name for path in shards.paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of its {len(shards.paths)} shards: {first_few(missing)}",
            AGAIN,
        )
    return shards


def gather(files: list[TensorFile], shards: Shards) -> dict[str, TensorInfo]:
    """Every tensor of the files by its name, once, and where the index promises it; else UserError."""
    found: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in file.tensors.items():
            if name in found:
                raise UserError(f"{name} is in {found[name].path.name} and in {file.path.name}", AGAIN)
            found[name] = info
    lacking = [
        name for name, path in shards.promised.items() if name not in found or found[name].path != path
    ]
    if lacking:
        raise UserError(
            f"{shards.index} promises what the shards lack, {len(lacking)}: {first_few(lacking)}",
            AGAIN,
        )
    return found


def first_few(names: Iterable[str], few: int = 3) -> str:
    """The first names, on one line whatever they hold, and how many more there are."""
    listed = [name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in names]
    listed = [name if name.isprintable() else ascii(name) for name in listed]
    more = f" and {len(listed) - few} more" if len(listed) > few else ""
    return ", ".join(listed[:few]) + more
