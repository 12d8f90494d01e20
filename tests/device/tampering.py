"""Bundles that somebody tampered with, each in another way, and what offers them to a device."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export.bundle.files import SIGNATURE
from ernie_export.bundle.manifest import FileEntry, Manifest
from ernie_export.bundle.provenance import Provenance
from ernie_export.digest import sha256_of
from ernie_export.distribute.artifact import FILEPATH, files_of
from ernie_export.distribute.signing import sign
from ernie_export.validate.report import Report
from ernie_export.validate.selfcheck import SelfCheck
from tests.bad_input.attack import edit_json, flip
from tests.device.conftest import resealed
from tests.validate.planting import stored


@dataclass
class Offered:
    """A signed bundle, newer than the active one, that is about to be tampered with."""

    root: Path
    folder: Path
    release: Path
    """The private key whose signature the device takes."""
    other: Path
    """One that it does not know."""
    another: Path
    """Another bundle, signed by the release too."""
    blobs: dict[str, Callable[[], tuple[bytes, dict[str, str]]]] = field(default_factory=dict)
    """What a hostile registry answers: body and headers, by the end of the path."""

    def sign(self) -> None:
        sign(self.folder, self.release)

    def sealed(self, **report: object) -> None:
        """The manifest and the report say that it was built like this; and it is signed by the release."""
        resealed(self.folder, **report)
        self.sign()


@dataclass(frozen=True)
class Tampering:
    name: str
    by: str
    """Who could do it."""
    tamper: Callable[[Offered], object]


ALL: list[Tampering] = []
STRANGER = "who holds no key"
SIGNER = "who holds the release's key, or errs with it"
REGISTRY = "who holds the registry, or the way to it"


def attack(name: str, by: str = STRANGER) -> Callable[[Callable[[Offered], object]], None]:
    return lambda tamper: ALL.append(Tampering(name, by, tamper))


def middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def document(offered: Offered, name: str, **changed: Any) -> None:
    """Fields of a document, in its own spelling; nothing else follows suit."""
    path = offered.folder / name
    content = json.loads(path.read_bytes()) | changed
    path.write_text(json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def files(offered: Offered, **changed: FileEntry) -> None:
    """A manifest that lists more, and a report that was sealed over it."""
    manifest = Manifest.read(offered.folder)
    listed = {path: entry.model_dump() for path, entry in (manifest.files | changed).items()}
    document(offered, Manifest.FILE, files=listed)
    sealed_over(offered)


def sealed_over(offered: Offered) -> None:
    report = Report.read(offered.folder / Report.FILE)
    digest = sha256_of(offered.folder / Manifest.FILE)
    report.model_copy(update={"manifest_sha256": digest}).write(offered.folder / Report.FILE)


WEIGHTS = "weights/layer-002.bin"
# What stands in a folder in place of what was built.
attack("a byte of the graph")(lambda it: middle(it.folder / "model.onnx"))
attack("a byte of a weight file")(lambda it: middle(it.folder / WEIGHTS))
attack("a byte of the recipe")(lambda it: flip(it.folder / "recipe.toml", 8))
attack("a byte of the self-check")(lambda it: middle(it.folder / SelfCheck.FILE))
attack("a weight file cut off")(lambda it: os.truncate(it.folder / WEIGHTS, 1000))
attack("a weight file that goes on")(lambda it: (it.folder / WEIGHTS).open("ab").write(b"more"))
attack("a weight file without end")(lambda it: os.truncate(it.folder / "weights/layer-003.bin", 1 << 42))
attack("a file missing")(lambda it: (it.folder / "config.json").unlink())
attack("a file too many")(lambda it: (it.folder / "sitecustomize.py").write_text("import os"))
attack("a file too many whose name is no text")(
    lambda it: Path(os.fsdecode(os.fsencode(it.folder / "weights") + b"/\xff\xfe")).write_text("")
)


@attack("two weight files swapped")
def _(it: Offered) -> None:
    one, other = it.folder / "weights/layer-001.bin", it.folder / "weights/layer-004.bin"
    one.rename(it.root / "aside"), other.rename(one), (it.root / "aside").rename(other)


@attack("a link in place of a file")
def _(it: Offered) -> None:
    (it.folder / "config.json").rename(it.root / "config.json")
    (it.folder / "config.json").symlink_to(it.root / "config.json")


@attack("a link in place of the weights' folder")
def _(it: Offered) -> None:
    (it.folder / "weights").rename(it.root / "weights")
    (it.folder / "weights").symlink_to(it.root / "weights")


@attack("a link in place of the signature")
def _(it: Offered) -> None:
    (it.folder / SIGNATURE).unlink()
    (it.folder / SIGNATURE).symlink_to("/etc/hostname")


def replaced(it: Offered, name: str, put: Callable[[Path], object]) -> None:
    (it.folder / name).unlink()
    put(it.folder / name)


def bound(path: Path) -> None:
    """A socket; its path is too long for the system unless it is said from its folder."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


attack("a pipe in place of a file")(lambda it: replaced(it, "generation_config.json", os.mkfifo))
attack("a pipe in place of the signature")(lambda it: replaced(it, SIGNATURE, os.mkfifo))
attack("a pipe in place of the manifest")(lambda it: replaced(it, Manifest.FILE, os.mkfifo))
attack("a socket in place of a file")(lambda it: replaced(it, "engine.json", bound))
attack("a folder in place of a file")(lambda it: replaced(it, "recipe.toml", Path.mkdir))

# manifest.json and report.json.
ENTRY = FileEntry(size=1, sha256="0" * 64)
attack("a path that leaves the folder")(lambda it: files(it, **{"../../etc/cron.d/x": ENTRY}))
attack("a path from the root")(lambda it: files(it, **{"/etc/passwd": ENTRY}))
attack("a path of another system")(lambda it: files(it, **{"..\\..\\autoexec.bat": ENTRY}))
attack("the manifest lists the signature")(lambda it: files(it, **{SIGNATURE: ENTRY}))
attack("another target in the manifest")(lambda it: document(it, Manifest.FILE, target="h100"))
attack("a manifest of a later version")(lambda it: document(it, Manifest.FILE, schema_version=9))
attack("a manifest with one key more")(lambda it: document(it, Manifest.FILE, run="rm -rf /"))
attack("a manifest that is not JSON")(lambda it: (it.folder / Manifest.FILE).write_text("files: all"))
attack("a manifest without end")(lambda it: os.truncate(it.folder / Manifest.FILE, 1 << 40))
attack("a manifest of a hundred thousand brackets")(
    lambda it: (it.folder / Manifest.FILE).write_text("[" * 100_000)
)


@attack("a file twice in the manifest")
def _(it: Offered) -> None:
    path = it.folder / Manifest.FILE
    entry = '  "model.onnx": {\n   "sha256": "' + "2" * 64 + '",\n   "size": 5\n  },\n'
    path.write_text(path.read_text().replace('  "model.onnx": {', entry + '  "model.onnx": {', 1))


attack("a size below zero")(
    lambda it: document(it, Manifest.FILE, files={"a": {"size": -1, "sha256": "0" * 64}})
)


@attack("a better number in the report")
def _(it: Offered) -> None:
    metrics = json.loads((it.folder / Report.FILE).read_bytes())["metrics"]
    document(it, Report.FILE, metrics=metrics | {"logits.kl_mean": 0.0})


attack("no report")(lambda it: (it.folder / Report.FILE).unlink())

# The signature.
attack("no signature")(lambda it: (it.folder / SIGNATURE).unlink())
attack("a signature by another key")(lambda it: sign(it.folder, it.other))
attack("the signature of another bundle")(lambda it: shutil.copy(it.another / SIGNATURE, it.folder))
attack("an empty signature")(lambda it: (it.folder / SIGNATURE).write_bytes(b""))
attack("a signature that is not of this form")(
    lambda it: (it.folder / SIGNATURE).write_text('{"mediaType": 1}')
)
attack("a signature without end")(lambda it: os.truncate(it.folder / SIGNATURE, 1 << 40))


@attack("built anew around a changed recipe, under the old signature")
def _(it: Offered) -> None:
    (it.folder / "recipe.toml").write_text("# mine\n" + (it.folder / "recipe.toml").read_text())
    resealed(it.folder)


@attack("a signature over other words")
def _(it: Offered) -> None:
    said = json.loads((it.folder / SIGNATURE).read_bytes())
    payload = said["dsseEnvelope"]["payload"]
    said["dsseEnvelope"]["payload"] = payload[:40] + payload[44:48] + payload[40:44] + payload[48:]
    (it.folder / SIGNATURE).write_text(json.dumps(said))


# What is signed as it should be, and yet is nothing for this device.
attack("an older version", SIGNER)(lambda it: it.sealed(time="2001-01-01T00:00:00+00:00"))
attack("another kind of device", SIGNER)(lambda it: it.sealed(target="h100"))
attack("a target that nobody knows", SIGNER)(lambda it: it.sealed(target="mainframe"))
attack("one that did not pass its gates", SIGNER)(lambda it: it.sealed(verdict="failed"))


def changed(name: str, change: Callable[[Path], object]) -> Callable[[Offered], object]:
    def tamper(it: Offered) -> None:
        change(it.folder / name)
        it.sealed()

    return tamper


attack("no self-check", SIGNER)(changed(SelfCheck.FILE, Path.unlink))
attack("half a self-check", SIGNER)(changed(SelfCheck.FILE, lambda path: os.truncate(path, 5000)))
attack("a graph that is none", SIGNER)(changed("model.onnx", lambda path: path.write_bytes(b"\x08\x0aONNX")))
attack("a graph outside the bundle", SIGNER)(
    changed("engine.json", lambda path: edit_json(path, graph="../../model.onnx"))
)
attack("a recipe that is none", SIGNER)(changed("recipe.toml", lambda path: path.write_text("name = 5")))
attack("a config beyond all measure", SIGNER)(
    changed("config.json", lambda path: edit_json(path, num_hidden_layers=5000))
)


def nonsense(name: str, change: Callable[[Any], Any]) -> Callable[[Offered], object]:
    def tamper(it: Offered) -> None:
        stored(name, change)(it.folder)
        it.sealed()

    return tamper


attack("weights that talk nonsense", SIGNER)(
    nonsense("embedding.weight", lambda values: np.roll(values, 1, 0))
)
attack("weights that are no numbers", SIGNER)(
    nonsense("layers.3.input_norm.weight", lambda values: values * np.float32(np.nan))
)


@attack("the provenance of other files", SIGNER)
def _(it: Offered) -> None:
    path = it.folder / Provenance.FILE
    path.write_text(path.read_text().replace('"model.onnx"', '"their.onnx"'))
    relisted(it)


@attack("the provenance of another checkpoint", SIGNER)
def _(it: Offered) -> None:
    path = it.folder / Provenance.FILE
    fingerprint = Manifest.read(it.folder).checkpoint.fingerprint
    path.write_text(path.read_text().replace(fingerprint, "ab" * 32))
    relisted(it)


def relisted(it: Offered) -> None:
    path = it.folder / Provenance.FILE
    entry = FileEntry(size=path.stat().st_size, sha256=sha256_of(path))
    files(it, **{Provenance.FILE: entry})


# The registry.
def served(it: Offered, change: Callable[[list[dict[str, Any]]], object] = lambda layers: None) -> None:
    """The bundle as an OCI artifact whose layers `change` may alter."""
    entries = files_of(it.folder, Manifest.read(it.folder))
    layers = [
        {"digest": f"sha256:{entry.sha256}", "size": entry.size, "annotations": {FILEPATH: path}}
        for path, entry in entries.items()
    ]
    change(layers)
    oci = json.dumps({"schemaVersion": 2, "layers": layers}).encode()
    it.blobs["/manifests/1"] = lambda: (oci, {})
    for path, entry in entries.items():
        it.blobs[f"/blobs/sha256:{entry.sha256}"] = lambda path=path: ((it.folder / path).read_bytes(), {})


def instead(it: Offered, path: str, data: bytes, **headers: str) -> None:
    """Other bytes under the digest of a file."""
    served(it)
    digest = sha256_of(it.folder / path)
    it.blobs[f"/blobs/sha256:{digest}"] = lambda: (
        data,
        {name.replace("_", "-"): headers[name] for name in headers},
    )


attack("a decompression bomb", REGISTRY)(
    lambda it: instead(it, WEIGHTS, gzip.compress(bytes(64 << 20)), Content_Encoding="gzip")
)
attack("other bytes under a digest", REGISTRY)(
    lambda it: instead(it, "recipe.toml", bytes((it.folder / "recipe.toml").stat().st_size))
)
attack("more bytes than were announced", REGISTRY)(lambda it: instead(it, "model.onnx", bytes(9 << 20)))
attack("a document listed twice", REGISTRY)(
    lambda it: served(it, lambda layers: layers.append(layers[0] | {"digest": "sha256:" + "3" * 64}))
)
attack("a manifest of ten gigabytes", REGISTRY)(
    lambda it: served(it, lambda layers: layers[0].update(size=10**10))
)
attack("no report listed", REGISTRY)(lambda it: served(it, lambda layers: layers.pop(1)))
attack("a digest of another kind", REGISTRY)(
    lambda it: served(it, lambda layers: layers[1].update(digest="md5:" + "0" * 32))
)


@attack("a list of layers without end", REGISTRY)
def _(it: Offered) -> None:
    it.blobs["/manifests/1"] = lambda: (b" " * (5 << 20), {})


@attack("another manifest than was asked for", REGISTRY)
def _(it: Offered) -> None:
    served(it)
    data, _ = it.blobs["/manifests/1"]()
    it.blobs["/manifests/sha256:" + hashlib.sha256(b"what was pushed").hexdigest()] = lambda: (data, {})
