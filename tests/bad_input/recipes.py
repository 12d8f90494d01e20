"""Recipes, targets, options and outputs that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

from ernie_export.checkpoint import embedded
from ernie_export.recipe import Recipe
from tests.bad_input.attack import Arguments, Attacks, Place

RECIPES = Attacks("Recipe")
TARGETS = Attacks("Target and options")
OUTPUTS = Attacks("Output")


def with_recipe(place: Place, recipe: str | Path) -> Arguments:
    return place.build(embedded.folder(), "--recipe", recipe)


@RECIPES.add("a misspelt name")
def _(place: Place) -> Arguments:
    return with_recipe(place, "itn4")


@RECIPES.add("no such file")
def _(place: Place) -> Arguments:
    return with_recipe(place, place.root / "missing.toml")


@RECIPES.add("a folder")
def _(place: Place) -> Arguments:
    (place.root / "folder.toml").mkdir()
    return with_recipe(place, place.root / "folder.toml")


@RECIPES.add("a pipe that nobody writes to")
def _(place: Place) -> Arguments:
    os.mkfifo(place.root / "pipe.toml")
    return with_recipe(place, place.root / "pipe.toml")


WHOLE: list[tuple[str, bytes | str]] = [
    ("an empty file", ""),
    ("not TOML", "{ parts }"),
    ("not UTF-8", b"name = '\xff'"),
    ("one key twice", 'name = "a"\nname = "b"\n'),
    ("nested 100,000 deep", "a = " + "[" * 100_000),
    ("a number of 10,000 digits", "context = " + "9" * 10_000),
]


def with_bytes(place: Place, data: bytes | str) -> Arguments:
    path = place.root / "recipe.toml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return with_recipe(place, path)


for name, data in WHOLE:
    RECIPES.add(name)(lambda place, data=data: with_bytes(place, data))

INT8 = '{ format = "int8", block_size = 128 }'
PIECES: list[tuple[str, str, str]] = [
    ("a misspelt key", "description = ", "desciption = "),
    ("a misspelt part", "attention = ", "atention = "),
    ("a misspelt bound", '"logits.kl_mean" = { max', '"logits.kl_mean" = { maxx'),
    ("a part missing", f"head = {INT8}\n", ""),
    ("an unknown format", 'head = { format = "int8"', 'head = { format = "int3"'),
    ("integers without a block size", f"head = {INT8}", 'head = { format = "int8" }'),
    ("floats with a block size", f"head = {INT8}", 'head = { format = "fp16", block_size = 32 }'),
    ("a block size that is not there", f"head = {INT8}", 'head = { format = "int8", block_size = 33 }'),
    ("a part that is a text", f"head = {INT8}", 'head = "int8"'),
    ("a misspelt gate", '"logits.kl_mean"', '"logits.kl_meen"'),
    ("a gate without a bound", '"logits.kl_mean" = { max = 0.02 }', '"logits.kl_mean" = {}'),
    ("a gate that nothing passes", '"logits.kl_mean" = { max', '"logits.kl_mean" = { min = 1.0, max'),
    ("a bound of NaN", "{ max = 0.02 }", "{ max = nan }"),
    ("a bound as text", "{ max = 0.02 }", '{ max = "0.02" }'),
    ("a batch of 0", "batch = 4", "batch = 0"),
    ("a context of one token", "batch = 4", "batch = 4\ncontext = 1"),
    ("a context longer than the checkpoint's", "batch = 4", "batch = 4\ncontext = 4096"),
    ("bits to be chosen without a budget", "batch = 4", 'batch = 4\nbits = "auto"'),
    ("a budget that is no size", "batch = 4", 'batch = 4\nbits = "auto"\nbudget = "a lot"'),
    ("a budget that cannot be met", "batch = 4", 'batch = 4\nbits = "auto"\nbudget = "50 MB"'),
    ("a layer that is not there", "[gates]", f"[parts.layers.4-6]\nexperts = {INT8}\n\n[gates]"),
    (
        "a layer told twice",
        "[gates]",
        f"[parts.layers.1-3]\nexperts = {INT8}\n\n[parts.layers.3]\nexperts = {INT8}\n\n[gates]",
    ),
    ("a name that is a path", 'name = "int4"', 'name = "../int4"'),
]
for name, old, new in PIECES:
    RECIPES.add(name)(lambda place, old=old, new=new: with_recipe(place, place.recipe(old, new)))


CALIBRATIONS: list[tuple[str, str]] = [
    ("a calibration without a method", "tokens = 512"),
    ("an unknown method of calibration", 'method = "awq"'),
    ("a misspelt key of the calibration", 'method = "gptq"\nwindows = 512'),
    ("a calibration on half a window", 'method = "gptq"\ntokens = 1000'),
    ("a calibration on no token", 'method = "gptq"\ntokens = 0'),
    ("a calibration on windows longer than the checkpoint's", 'method = "gptq"\nwindow = 4096'),
]
for name, text in CALIBRATIONS:
    RECIPES.add(name)(
        lambda place, text=text: with_recipe(
            place, place.recipe("[gates]", f"[calibration]\n{text}\n\n[gates]")
        )
    )


@RECIPES.add("a calibration of floats")
def _(place: Place) -> Arguments:
    text = Recipe.find("fp16").to_toml()
    return with_bytes(place, text.replace("[gates]", '[calibration]\nmethod = "gptq"\n\n[gates]'))


def with_calibration(place: Place, text: bytes | Path, recipe: str = "int4-gptq") -> Arguments:
    path = text if isinstance(text, Path) else place.root / "mine.txt"
    if isinstance(text, bytes):
        path.write_bytes(text)
    return place.build(embedded.folder(), "--recipe", recipe, "--calibration", path)


CALIBRATION_TEXTS: list[tuple[str, bytes]] = [
    ("a calibration text that is empty", b""),
    ("a calibration text that is not UTF-8", b"Ernie\xff"),
    ("a calibration text that is too short", b"Ernie and Bert. " * 100),
]
for name, data in CALIBRATION_TEXTS:
    RECIPES.add(name)(lambda place, data=data: with_calibration(place, data))


@RECIPES.add("a calibration text that is not there")
def _(place: Place) -> Arguments:
    return with_calibration(place, place.root / "none.txt")


@RECIPES.add("a calibration text that is a folder")
def _(place: Place) -> Arguments:
    (place.root / "folder.txt").mkdir()
    return with_calibration(place, place.root / "folder.txt")


@RECIPES.add("a calibration text that is a pipe")
def _(place: Place) -> Arguments:
    os.mkfifo(place.root / "pipe.txt")
    return with_calibration(place, place.root / "pipe.txt")


@RECIPES.add("a calibration text that nothing would read")
def _(place: Place) -> Arguments:
    return with_calibration(place, b"Ernie and Bert. " * 10_000, "int4")


@RECIPES.add("blocks that do not divide the rows")
def _(place: Place) -> Arguments:
    return place.build(place.tiny_with_tokenizer(), "--recipe", "int4")


@TARGETS.add("no such target")
def _(place: Place) -> Arguments:
    return ["build", "--target", "gpu9000", "--output", place.output]


@TARGETS.add("a target that is only planned")
def _(place: Place) -> Arguments:
    return ["build", "--target", "jetson-orin-nano-8gb", "--output", place.output]


OPTIONS: list[tuple[str, list[str]]] = [
    ("no target", ["build", "--output", "out"]),
    ("no such command", ["bulid"]),
    ("no such option", ["inspect", "--jsn"]),
    ("a shape that does not exist", ["synthesize", "--like", "22b", "--output", "out"]),
    ("no layer", ["synthesize", "--like", "nano", "--layers", "0", "--output", "out"]),
    ("more layers than a model has", ["synthesize", "--like", "nano", "--layers", "2000", "--output", "out"]),
]
for name, words in OPTIONS:
    TARGETS.add(name)(lambda place, words=words: [place.root / w if w == "out" else w for w in words])


@OUTPUTS.add("a folder that is no bundle")
def _(place: Place) -> Arguments:
    place.output.mkdir(parents=True)
    (place.output / "thesis.tex").write_text("three years of work")
    return place.build(embedded.folder())


@OUTPUTS.add("a folder that is no bundle, to be replaced", like="a folder that is no bundle")
def _(place: Place) -> Arguments:
    place.output.mkdir(parents=True)
    (place.output / "thesis.tex").write_text("three years of work")
    return place.build(embedded.folder(), "--replace")


@OUTPUTS.add("a file")
def _(place: Place) -> Arguments:
    place.output.parent.mkdir()
    place.output.write_text("mine")
    return place.build(embedded.folder())


@OUTPUTS.add("a file, to be replaced", like="a file")
def _(place: Place) -> Arguments:
    place.output.parent.mkdir()
    place.output.write_text("mine")
    return place.build(embedded.folder(), "--replace")


@OUTPUTS.add("a link, to be replaced")
def _(place: Place) -> Arguments:
    place.output.parent.mkdir()
    place.output.symlink_to(place.bundle())
    return place.build(embedded.folder(), "--recipe", "int8", "--replace")


@OUTPUTS.add("below a file")
def _(place: Place) -> Arguments:
    (place.root / "out").write_text("mine")
    return place.build(embedded.folder())


@OUTPUTS.add("a name of 300 characters")
def _(place: Place) -> Arguments:
    return ["build", "--target", "cpu", "--output", place.root / ("b" * 300)]


@OUTPUTS.add("a bundle of another recipe")
def _(place: Place) -> Arguments:
    return ["build", "--target", "cpu", "--recipe", "int8", "--output", place.bundle()]


@OUTPUTS.add("a checkpoint, where one is to be synthesized")
def _(place: Place) -> Arguments:
    return ["synthesize", "--like", "nano", "--output", place.tiny().write()]


@OUTPUTS.add("no write permission", 1, under=("unprivileged",))
def _(place: Place) -> Arguments:
    place.output.parent.mkdir(mode=0o555)
    return place.build(embedded.folder())
