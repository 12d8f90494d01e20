"""TensorRT's plugins, driven by drive_plugins.cpp: its commands, and what it told."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from plugins.build import build
from tests.plugins.emulated import ROOT

Array = np.ndarray[Any, Any]
Attributes = Mapping[str, int | float | None]
TYPES: dict[str, Any] = {
    "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "fp32": np.dtype(np.float32),
    "int8": np.dtype(np.int8), "int32": np.dtype(np.int32), "int64": np.dtype(np.int64),
    "uint8": np.dtype(np.uint8),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}
WHOLE = ("create", "build", "reload", "attach", "run", "detach")


@dataclass(frozen=True)
class Declared:
    """An input as TensorRT tells of it; without values it has no memory."""

    dtype: str
    shape: tuple[int, ...]
    values: Array | None = None
    largest: tuple[int, ...] | None = None
    """Of the profile; None: the shape itself."""


@dataclass
class Told:
    lines: list[str]
    code: int
    said: str
    """On standard error: what a sanitizer says."""
    outputs: list[Array] = field(default_factory=list)

    def __getitem__(self, word: str) -> list[str]:
        """What stands behind `word`, a line each."""
        return [line.partition(" ")[2] for line in self.lines if line.split(" ")[0] == word]

    @property
    def errors(self) -> list[str]:
        return self["error"]


@cache
def built(flavour: str, sm: str = "") -> Path:
    """The folder with libernie_plugins.so and ernie_drive_plugins."""
    output = ROOT / "build" / "plugins" / (f"{flavour}-{sm}" if sm else flavour)
    return build(flavour, output, sm, plugins=True)


def declared(array: Array) -> Declared:
    return Declared(NAMES[array.dtype], array.shape, array)


def drive(
    name: str,
    attributes: Attributes,
    inputs: Iterable[Array | Declared],
    commands: Sequence[str] = WHOLE,
    share: Mapping[int, int] | None = None,
    launcher: Sequence[str] = (),
    folder: Path | None = None,
    tensorrt: Path | None = None,
) -> Told:
    """One life of the plugin: `commands` in their order, `create` with these attributes, `run` with these inputs.

    share: outputs that lie in an input's memory; launcher: what runs the program, qemu say; folder: what `built`
    gives; tensorrt: a library whose registry is to load the plugins.
    """
    folder = folder or built("address")
    with tempfile.TemporaryDirectory() as work:
        script = [_attribute(*each) for each in attributes.items()]
        for i, given in enumerate(inputs):
            script.append(
                _input(given if isinstance(given, Declared) else declared(given), Path(work) / f"in{i}")
            )
        script += [f"share {output} {given}" for output, given in (share or {}).items()]
        words = {"create": f"create {name}", "run": f"run {work}/out"}
        script += [words.get(command, command) for command in commands]
        program = [*launcher, str(folder / "ernie_drive_plugins"), str(folder / "libernie_plugins.so")]
        program += [str(tensorrt)] if tensorrt else []
        environment = {
            **os.environ,
            "ASAN_OPTIONS": "detect_leaks=1:exitcode=98",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        done = subprocess.run(
            program, input="\n".join(script), capture_output=True, text=True, env=environment
        )
        told = Told(done.stdout.splitlines(), done.returncode, done.stderr)
        if "0" in told["enqueue"]:
            for i, line in enumerate(told["output"]):
                dtype, shape, _ = line.split()
                flat = np.frombuffer((Path(work) / f"out{i}").read_bytes(), TYPES[dtype])
                told.outputs.append(flat.reshape([int(size) for size in shape.split(",")]))
    assert told.code == 0, f"{told.code}\n{told.said[:4000]}\n{done.stdout[-2000:]}"
    return told


def _attribute(name: str, value: int | float | None) -> str:
    kind = {int: "i32", float: "f32"}.get(type(value), "none")
    if isinstance(value, int) and value >= 2**31:
        kind = "i64"
    return f"attribute {name} {kind} {value}"


def _input(given: Declared, file: Path) -> str:
    if given.values is not None:
        given.values.tofile(file)
    shape, largest = (",".join(map(str, each)) or "-" for each in (given.shape, given.largest or given.shape))
    return f"input {given.dtype} {shape} {largest} {'-' if given.values is None else file}"
