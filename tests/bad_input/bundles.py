"""Bundles that were damaged, edited or made up."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.bad_input.attack import Arguments, Attacks, Place, edit_json, flip
from tests.checkpoint.conftest import TINY

BUNDLES = Attacks("Bundle, as verify sees it")
ENGINES = Attacks("Bundle, as generate, chat and validate see it")
PROMPTS = Attacks("Prompt and sampling")


@BUNDLES.add("no such folder")
def _(place: Place) -> Arguments:
    return ["verify", place.root / "missing"]


@BUNDLES.add("a checkpoint in place of a bundle")
def _(place: Place) -> Arguments:
    return ["verify", place.tiny().write()]


def first_weights(folder: Path) -> Path:
    return min((folder / "weights").iterdir())


def middle_flipped(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


for file in ("model.onnx", "engine.json", "recipe.toml", "tokenizer.json", "genai_config.json"):

    @BUNDLES.add(f"one bit of {file} changed", 1)
    def _(place: Place, file: str = file) -> Arguments:
        folder = place.bundle()
        middle_flipped(folder / file)
        return ["verify", folder]


@BUNDLES.add("one bit of a weight file changed", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    middle_flipped(first_weights(folder))
    return ["verify", folder]


@BUNDLES.add("a weight file cut off", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    os.truncate(first_weights(folder), 1000)
    return ["verify", folder]


@BUNDLES.add("a file missing", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    (folder / "chat_template.jinja").unlink()
    return ["verify", folder]


@BUNDLES.add("a file too many", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    (folder / "weights" / "sitecustomize.py").write_text("import os")
    return ["verify", folder]


@BUNDLES.add("a link in place of a file", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    shutil.move(folder / "config.json", place.root / "config.json")
    (folder / "config.json").symlink_to(place.root / "config.json")
    return ["verify", folder]


@BUNDLES.add("a pipe in the folder", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    os.mkfifo(folder / "weights" / "pipe")
    return ["verify", folder]


@BUNDLES.add("three faults at once", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    (folder / "config.json").unlink()
    (folder / "extra").write_text("")
    middle_flipped(folder / "model.onnx")
    return ["verify", folder]


def with_manifest(place: Place, **fields: Any) -> Arguments:
    folder = place.bundle()
    manifest = json.loads((folder / "manifest.json").read_bytes()) | fields
    text = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text)
    return ["verify", folder]


ENTRY = {"size": 1, "sha256": "0" * 64}
MANIFESTS: list[tuple[str, dict[str, Any]]] = [
    ("a manifest of a later version", {"schema_version": 2}),
    ("a manifest that lists a path outside", {"files": {"../../etc/passwd": ENTRY}}),
    ("a manifest that lists itself", {"files": {"manifest.json": ENTRY}}),
    ("a size below zero in the manifest", {"files": {"a": ENTRY | {"size": -1}}}),
    ("a manifest with another verdict", {"verdict": "perfect"}),
    ("a manifest with another target", {"target": "jetson-orin-nano-8gb"}),
    ("a manifest with one key more", {"signed": True}),
]
for name, fields in MANIFESTS:
    BUNDLES.add(name, 1)(lambda place, fields=fields: with_manifest(place, **fields))


def with_file(place: Place, file: str, data: bytes | str, *command: str) -> Arguments:
    folder = place.bundle()
    (folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())
    return [command[0], folder, *command[1:]]


@BUNDLES.add("a manifest that is not JSON", 1)
def _(place: Place) -> Arguments:
    return with_file(place, "manifest.json", "bundle", "verify")


@BUNDLES.add("a manifest spelled in another way", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    edit_json(folder / "manifest.json")
    return ["verify", folder]


@BUNDLES.add("no report", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    (folder / "report.json").unlink()
    return ["verify", folder]


@BUNDLES.add("a report that is not UTF-8", 1)
def _(place: Place) -> Arguments:
    return with_file(place, "report.json", b"\xff{}", "verify")


@BUNDLES.add("a report with a better number", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    report = json.loads((folder / "report.json").read_bytes())
    report["metrics"]["logits.kl_mean"] = 0.0
    text = json.dumps(report, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    (folder / "report.json").write_text(text)
    return ["verify", folder]


SAY = ("generate", "--prompt", "The", "--max-tokens", "2")


def with_engine(place: Place, **fields: Any) -> Arguments:
    folder = place.bundle()
    edit_json(folder / "engine.json", **fields)
    return [SAY[0], folder, *SAY[1:]]


@ENGINES.add("no engine.json")
def _(place: Place) -> Arguments:
    return ["generate", place.tiny().write(), "--prompt", "The"]


@ENGINES.add("an engine.json that is a folder")
def _(place: Place) -> Arguments:
    folder = place.tiny().path
    (folder / "engine.json").mkdir()
    return ["generate", folder, "--prompt", "The"]


@ENGINES.add("an engine.json that is not JSON")
def _(place: Place) -> Arguments:
    return with_file(place, "engine.json", "runtime: onnxruntime-cpu", *SAY)


ENGINE_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("an unknown runtime", {"runtime": "magic"}),
    ("a graph outside the bundle", {"graph": "../../etc/passwd"}),
    ("layers below zero", {"num_layers": -1}),
    ("a key misspelt", {"vocab_sise": 5}),
    ("no max_context", {"max_context": None}),
    ("one layer less than the graph has", {"num_layers": 5, "moe_layers": [1, 2, 3, 4]}),
    ("one layer more than the graph has", {"num_layers": 7}),
    ("another head width than the graph's", {"head_dim": 64}),
    ("a smaller vocabulary than the graph's", {"vocab_size": 96}),
    ("a vocabulary of 0", {"vocab_size": 0}),
    ("a context of 0", {"max_context": 0}),
]
for name, fields in ENGINE_FIELDS:
    ENGINES.add(name)(lambda place, fields=fields: with_engine(place, **fields))


@ENGINES.add("a graph that is none", 1)
def _(place: Place) -> Arguments:
    return with_file(place, "model.onnx", b"\x08\x0aONNX", *SAY)


@ENGINES.add("no graph", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    (folder / "model.onnx").unlink()
    return [SAY[0], folder, *SAY[1:]]


@ENGINES.add("a weight file cut off", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    os.truncate(first_weights(folder), 1000)
    return [SAY[0], folder, *SAY[1:]]


@ENGINES.add("validated with a graph of no weights")
def _(place: Place) -> Arguments:
    return with_file(place, "model.onnx", b"xx", "validate")


@ENGINES.add("validated with a weight of another name")
def _(place: Place) -> Arguments:
    graph = (place.bundle_source() / "model.onnx").read_bytes()
    changed = graph.replace(b"layers.0.input_norm.weight", b"layers.0.input_nose.weight")
    return with_file(place, "model.onnx", changed, "validate")


@ENGINES.add("a weight file missing", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    first_weights(folder).unlink()
    return [SAY[0], folder, *SAY[1:]]


@ENGINES.add("a bundle without its tokenizer")
def _(place: Place) -> Arguments:
    folder = place.bundle()
    (folder / "tokenizer.json").unlink()
    return [SAY[0], folder, *SAY[1:]]


@ENGINES.add("weights that are NaN", 1)
def _(place: Place) -> Arguments:
    folder = place.bundle()
    path = folder / "weights" / "embedding.bin"
    path.write_bytes(b"\xff\x7e" * (path.stat().st_size // 2))
    return [SAY[0], folder, *SAY[1:]]


@ENGINES.add("validated against no bundle", like="a checkpoint in place of a bundle")
def _(place: Place) -> Arguments:
    return ["validate", place.tiny().path]


@ENGINES.add("validated with a broken recipe")
def _(place: Place) -> Arguments:
    return with_file(place, "recipe.toml", "name = 5", "validate")


@ENGINES.add("validated against a checkpoint with another tokenizer")
def _(place: Place) -> Arguments:
    checkpoint = place.nano()
    edit_json(checkpoint / "tokenizer_config.json", model_max_length=5)
    return ["validate", place.bundle(), "--against", checkpoint]


@ENGINES.add("validated against a checkpoint of another shape")
def _(place: Place) -> Arguments:
    checkpoint = place.tiny(**{k: v for k, v in TINY.items() if k == "vocab_size"}).write()
    nano = place.nano()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(nano / name, checkpoint / name)
    return ["validate", place.bundle(), "--against", checkpoint]


ASKED: list[tuple[str, list[str]]] = [
    ("neither text nor token ids", []),
    ("an empty prompt", ["--prompt", ""]),
    ("half a surrogate pair", ["--prompt", "\udcff"]),
    ("token ids that are none", ["--prompt-ids", "1,two"]),
    ("a token outside the vocabulary", ["--prompt-ids", "1,1536"]),
    ("a token below zero", ["--prompt-ids=-1"]),
    ("a prompt longer than the context", ["--prompt-ids", ",".join(["5"] * 2049)]),
    ("no token to generate", ["--prompt", "The", "--max-tokens", "0"]),
    ("a temperature of NaN", ["--prompt", "The", "--temperature", "nan"]),
    ("a top-p of 0", ["--prompt", "The", "--top-p", "0"]),
    ("a top-k below zero", ["--prompt", "The", "--top-k", "-1"]),
    ("a seed below zero", ["--prompt", "The", "--seed", "-1"]),
]
for name, words in ASKED:
    PROMPTS.add(name)(lambda place, words=words: ["generate", place.bundle(), *words])
