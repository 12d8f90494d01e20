"""Synthetic checkpoints: any ERNIE-4.5 shape in the published layout, with random weights.

They are for what needs the true size and not the true weights: speed, memory, plans, shapes.
config.json carries a marker, so that every report can say that nothing about quality is claimed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export import atomic, lock
from ernie_export.checkpoint import embedded, shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.json_file import read_object
from ernie_export.checkpoint.layout import Shapes, tensor_shapes
from ernie_export.checkpoint.random_weights import FP32, RandomWeights, dtype_of, rows_at_once
from ernie_export.checkpoint.shards import INDEX, SINGLE
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Progress, Step

MARKER = "ernie_export_synthetic"
NOTICE = "random weights: nothing about quality can be claimed"
SHARD = 5_000_000_000
"""Bytes of tensors in a file at most, as published."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def note(folder: Path) -> str | None:
    """What a report must say of a synthetic checkpoint; None for one that is not."""
    marker = read_object(folder / "config.json").get(MARKER)
    if not isinstance(marker, dict):
        return None
    weights = "all zeros" if marker.get("sparse") else f"seed {marker.get('seed')}"
    return f"synthetic, like {marker.get('like')}, {weights}; {NOTICE}"


def synthesize(
    like: str,
    output: Path,
    progress: Progress,
    layers: int | None = None,
    seed: int = 0,
    sparse: bool = False,
    threads: int | None = None,
    shard: int = SHARD,
) -> None:
    """Write a checkpoint of the shape `like` (a name of `shapes`, or a folder with a config.json).

    The same seed gives the same bytes for any number of threads, and the same layer 0 for any number
    of layers.  `sparse` writes zeros, as holes that take no disk.  A run that is killed leaves
    `.NAME.partial`, which the next one replaces.

    Raises:
        UserError: there is no such shape, it has no such depth, or the output exists.
        WorkError: the disk is too small, or another run writes the same output.
    """
    output = output.absolute()
    if output.exists():
        raise UserError(f"{output} exists", "Name another --output, or remove it first.")
    source = shapes.folder(like)
    published = ErnieConfig.read(source)
    config = _of_depth(published, layers or published.num_hidden_layers, like)
    tensors = tensor_shapes(config)
    if not sparse:
        _check_disk(output.parent, size_of(config))
    partial = output.parent / f".{output.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    with lock.held(partial):
        _clear(partial)
        tokenizer = _tokenizer(source, config)
        marker = {
            "like": like,
            "seed": None if sparse else seed,
            "sparse": sparse,
            "tokenizer": tokenizer and tokenizer.name,
            "notice": NOTICE,
        }
        _write_config(source, config, marker, partial)
        for name in TOKENIZER_FILES:
            if tokenizer and (tokenizer / name).is_file():
                atomic.write(partial / name, (tokenizer / name).read_bytes())
        weights = None if sparse else RandomWeights(config, seed, published.num_hidden_layers)
        _write_shards(partial, tensors, weights, shard, threads or len(os.sched_getaffinity(0)), progress)
        (partial / lock.FILE).unlink()
        os.rename(partial, output)
        atomic.sync(output.parent)


def size_of(config: ErnieConfig) -> int:
    """Bytes of the weights of a checkpoint of this shape."""
    tensors = tensor_shapes(config)
    return sum(map(_nbytes, tensors, tensors.values()))


def _of_depth(published: ErnieConfig, layers: int, like: str) -> ErnieConfig:
    """The config of another depth; experts to the last layer where the published one has them there."""
    if not published.moe_num_experts:
        return published.model_copy(update={"num_hidden_layers": layers})
    first, last = published.moe_layers[0], published.moe_layer_end_index
    if layers <= first:
        raise UserError(
            f"{like} has its first experts in layer {first}, so {layers} layers would have none",
            f"Ask for --layers {first + 1} or more.",
        )
    to_the_end = last >= published.num_hidden_layers - 1
    last = layers - 1 if to_the_end else min(last, layers - 1)
    return published.model_copy(update={"num_hidden_layers": layers, "moe_layer_end_index": last})


def _check_disk(folder: Path, wanted: int) -> None:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if (free := shutil.disk_usage(there).free) < wanted:
        raise WorkError(
            f"The checkpoint needs {wanted / 1e9:.2f} GB, {folder} has room for {free / 1e9:.2f} GB",
            "Ask for fewer --layers, or name an --output on another disk.",
        )


def _clear(partial: Path) -> None:
    """Remove what a killed run left; the lock is ours."""
    for path in partial.iterdir():
        if path.name != lock.FILE:
            path.unlink()


def _write_config(source: Path, config: ErnieConfig, marker: dict[str, Any], partial: Path) -> None:
    """The source's config.json with another depth and the marker."""
    raw = read_object(source / "config.json") | {
        "num_hidden_layers": config.num_hidden_layers,
        MARKER: marker,
    }
    if config.moe_num_experts:
        raw["moe_layer_end_index"] = config.moe_layer_end_index
    atomic.write(partial / "config.json", (json.dumps(raw, indent=2) + "\n").encode())


def _tokenizer(source: Path, config: ErnieConfig) -> Path | None:
    """Where to take a tokenizer from: the source, or ernie-nano where its tokens are tokens here too."""
    if (source / "tokenizer.json").is_file():
        return source
    nano = ErnieConfig.read(embedded.folder())
    ends = [(each.bos_token_id, each.eos_token_id, each.pad_token_id) for each in (nano, config)]
    return embedded.folder() if nano.vocab_size <= config.vocab_size and ends[0] == ends[1] else None


def _write_shards(
    partial: Path,
    tensors: Shapes,
    weights: RandomWeights | None,
    shard: int,
    threads: int,
    progress: Progress,
) -> None:
    """Without `weights` each file is a hole."""
    sizes = {name: _nbytes(name, shape) for name, shape in tensors.items()}
    total = sum(sizes.values())
    parts = list(_split(sizes, shard))
    names = [SINGLE]
    if len(parts) > 1:
        names = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
        weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        atomic.write(partial / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    with progress.step("Write weights", total, "B") as step:
        for name, part in zip(names, parts, strict=True):
            _write_shard(partial / name, {tensor: tensors[tensor] for tensor in part}, weights, threads, step)


def _split(sizes: dict[str, int], shard: int) -> Iterator[list[str]]:
    """In the order of the model, each file filled up to the limit, as transformers does it."""
    names: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if names and filled + size > shard:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def _write_shard(
    path: Path, tensors: Shapes, weights: RandomWeights | None, threads: int, step: Step
) -> None:
    header, offsets = _header(tensors)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(offsets[""])
        if weights:
            _fill(file.fileno(), tensors, offsets, weights, threads, step)
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Shapes) -> tuple[bytes, dict[str, int]]:
    """The header, and where in the file each tensor begins; the end of the file under the name ""."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(
        tensors, key=lambda name: (-dtype_of(name).itemsize, name)
    ):  # as the library sorts them
        begin, end = end, end + _nbytes(name, tensors[name])
        dtype = "F32" if dtype_of(name) == FP32 else "BF16"
        entries[name] = {"dtype": dtype, "shape": tensors[name], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    offsets = {name: start + entries[name]["data_offsets"][0] for name in tensors} | {"": start + end}
    return len(text).to_bytes(8, "little") + text, offsets


def _fill(
    file: int, tensors: Shapes, offsets: dict[str, int], weights: RandomWeights, threads: int, step: Step
) -> None:
    def write(piece: tuple[str, int, int, int]) -> int:
        name, begin, end, columns = piece
        numbers = weights.piece(name, begin, end, columns)
        left = numbers.view(np.uint8).data.cast("B")
        size, at = numbers.nbytes, offsets[name] + begin * columns * numbers.itemsize
        while left:
            done = os.pwrite(file, left, at)
            left, at = left[done:], at + done
        return size

    with ThreadPoolExecutor(threads) as pool:
        for size in pool.map(write, _pieces(tensors)):
            step.advance(size)


def _pieces(tensors: Shapes) -> Iterator[tuple[str, int, int, int]]:
    """Name, first row, row behind the last, columns."""
    for name, shape in tensors.items():
        rows, columns = math.prod(shape[:-1]), shape[-1]
        at_once = rows_at_once(columns)
        for begin in range(0, rows, at_once):
            yield name, begin, min(begin + at_once, rows), columns


def _nbytes(name: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype_of(name).itemsize
