"""Whole bundles, into a registry and out of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.bundle.write import seal
from ernie_export.distribute import artifact
from ernie_export.distribute.address import Address
from ernie_export.distribute.pull import pull
from ernie_export.distribute.push import push
from ernie_export.distribute.registry import Registry
from ernie_export.errors import UserError, WorkError
from ernie_export.validate.report import Report
from tests.conftest import BuiltBundle
from tests.distribute.docker_registry import DockerRegistry


def client(address: str) -> Registry:
    return Registry(Address.parse(address), plain_http=True, pause=0.01)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def next_version(bundle: Path, folder: Path, changed: str) -> Path:
    """The bundle with one byte of one file changed, sealed anew."""
    shutil.copytree(bundle, folder)
    data = bytearray((folder / changed).read_bytes())
    data[-1] ^= 1
    (folder / changed).write_bytes(data)
    manifest, report = Manifest.read(folder), Report.read(folder / Report.FILE)
    for name in artifact.DOCUMENTS:
        (folder / name).unlink()
    seal(folder, report, manifest.claims)
    return folder


def travels(before: Path, after: Path) -> int:
    """Bytes of the files that one has and the other has not."""
    there = {hashlib.sha256(data).digest() for data in contents(before).values()}
    return sum(len(data) for data in contents(after).values() if hashlib.sha256(data).digest() not in there)


def test_a_bundle_goes_and_comes_back(registry: DockerRegistry, bundle: BuiltBundle, tmp_path: Path) -> None:
    built = bundle("int4")
    there = client(registry.address("round/trip"))
    pushed = push(built, there)
    assert pushed.there == 0 and pushed.tag == "1"
    assert push(built, there).sent == 0
    pulled = pull(there, tmp_path / "back")
    assert contents(built) == contents(tmp_path / "back") and not verify(tmp_path / "back")
    assert pulled.received == pushed.sent and pulled.address == pushed.address
    assert [path.name for path in tmp_path.iterdir()] == ["back"]
    assert pull(client(pushed.address), tmp_path / "again").address == pushed.address


def test_the_artifact_speaks_modelpack(registry: DockerRegistry, bundle: BuiltBundle) -> None:
    built = bundle("int4")
    there = client(registry.address("model/pack"))
    push(built, there)
    document = json.loads(there.manifest()[1])
    assert document["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert document["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"].removeprefix(
            "application/vnd.cncf.model."
        )
        for layer in document["layers"]
    }
    assert set(kinds) == {str(path) for path in contents(built)}
    assert kinds["model.onnx"] == "weight.v1.raw" and kinds["tokenizer.json"] == "weight.config.v1.raw"
    assert all(kind == "weight.v1.raw" for path, kind in kinds.items() if path.startswith("weights/"))


def test_only_what_changed_travels(registry: DockerRegistry, bundle: BuiltBundle, tmp_path: Path) -> None:
    first = bundle("int4")
    changed = max(path for path in Manifest.read(first).files if path.startswith("weights/"))
    second = next_version(first, tmp_path / "second", changed)
    there = client(registry.address("versions", "1"))
    push(first, there)
    newer = client(registry.address("versions", "2"))
    sent = push(second, newer).sent
    assert sent == travels(first, second) < (second / changed).stat().st_size + 100_000
    pull(there, tmp_path / "device")
    pulled = pull(newer, tmp_path / "device", replace=True)
    assert pulled.received == sent
    assert contents(second) == contents(tmp_path / "device")


def test_a_damaged_file_of_the_earlier_bundle_is_fetched(
    registry: DockerRegistry, bundle: BuiltBundle, tmp_path: Path
) -> None:
    there = client(registry.address("damaged"))
    push(bundle("int4"), there)
    pull(there, tmp_path / "device")
    path = tmp_path / "device" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert pull(there, tmp_path / "device", replace=True).received >= path.stat().st_size
    assert not verify(tmp_path / "device")


def test_a_pull_that_was_cut_off_goes_on(
    registry: DockerRegistry, bundle: BuiltBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = client(registry.address("cut/off"))
    sent = push(bundle("int4"), there).sent
    download, done = Registry.download, []

    def dying(self: Registry, digest: str, size: int, path: Path, step: object) -> None:
        if len(done) == 6:
            raise WorkError("The network is gone", "Wait.")
        done.append(size)
        download(self, digest, size, path, step)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "download", dying)
        with pytest.raises(WorkError, match="The network is gone"):
            pull(there, tmp_path / "device")
    assert not (tmp_path / "device").exists()
    pulled = pull(there, tmp_path / "device")
    assert pulled.received == sent - sum(done) and pulled.there == sum(done)
    assert contents(bundle("int4")) == contents(tmp_path / "device")


def test_what_a_pull_does_not_touch(registry: DockerRegistry, bundle: BuiltBundle, tmp_path: Path) -> None:
    there = client(registry.address("touch"))
    push(bundle("int4"), there)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for replace in (False, True):
        with pytest.raises(UserError, match="exists"):
            pull(there, tmp_path / "mine", replace=replace)
    assert (tmp_path / "mine" / "file").read_text() == "mine"
    pull(there, tmp_path / "bundle")
    with pytest.raises(UserError, match="exists"):
        pull(there, tmp_path / "bundle")


def test_a_damaged_bundle_is_not_pushed(
    registry: DockerRegistry, bundle: BuiltBundle, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle("int4"), folder)
    graph = folder / "model.onnx"
    right = graph.read_bytes()
    graph.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    there = client(registry.address("refused"))
    with pytest.raises(UserError, match="is not the file that the manifest lists"):
        push(folder, there)
    graph.write_bytes(right + b"?")
    with pytest.raises(WorkError, match=r"is not what was built: model\.onnx"):
        push(folder, there)
    with pytest.raises(UserError, match="holds no"):
        there.manifest()


def blob(there: Registry, layer: dict[str, str]) -> bytes:
    with there._answered() as ask:
        return ask("GET", f"blobs/{layer['digest']}").content


def altered(there: Registry, change: str, data: bytes) -> bytes:
    """The OCI manifest of a pushed bundle, changed as an attacker might."""
    document = json.loads(data)
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in document["layers"]}
    swap = {"another file as report": ("report.json", "recipe.toml"),
            "the graph as manifest": ("manifest.json", "model.onnx")}  # fmt: skip
    if change in swap:
        place, other = (layers[path] for path in swap[change])
        place |= {"digest": other["digest"], "size": other["size"]}
    elif change == "no manifest":
        document["layers"].remove(layers["manifest.json"])
    elif change == "a wrong size":
        layers["manifest.json"]["size"] -= 1
    elif change == "a path that leads out":
        hostile = json.loads(blob(there, layers["manifest.json"]))
        hostile["files"]["../../out"] = hostile["files"].pop("model.onnx")
        written = json.dumps(hostile, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"
        layers["manifest.json"] |= {"digest": there.upload_bytes(written), "size": len(written)}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no manifest", "lists no manifest.json"),
        ("another file as report", "report.json"),
        ("the graph as manifest", "The manifest .* is damaged"),
        ("a wrong size", "is larger than"),
        ("a path that leads out", "no plain path inside the bundle"),
    ],
)
def test_a_hostile_artifact_is_refused(
    registry: DockerRegistry, bundle: BuiltBundle, tmp_path: Path, change: str, words: str
) -> None:
    there = client(registry.address(f"hostile/{change.replace(' ', '-')}"))
    push(bundle("int4"), there)
    there.put_manifest(altered(there, change, there.manifest()[1]))
    with pytest.raises((UserError, WorkError), match=words):
        pull(there, tmp_path / "device")
    assert not (tmp_path / "device").exists() and not (tmp_path / "out").exists()


def test_no_bundle_at_all(registry: DockerRegistry, tmp_path: Path) -> None:
    there = client(registry.address("image"))
    layer = {"mediaType": "application/x", "digest": there.upload_bytes(b"{}"), "size": 2}
    kind = "application/vnd.oci.image.manifest.v1+json"
    image = {"schemaVersion": 2, "mediaType": kind, "config": layer, "layers": [layer]}
    there.put_manifest(json.dumps(image).encode())
    with pytest.raises(UserError, match=r"is no bundle: it lists no manifest.json"):
        pull(there, tmp_path / "device")


def test_the_commands(registry: DockerRegistry, bundle: BuiltBundle, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ernie_export", *words, "--plain-http"]
        return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))

    address = registry.address("commands")
    pushed = run("push", str(bundle("int4")), address, "--json")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["tag"] == "1"
    pulled = run("pull", address, "--output", str(tmp_path / "device"))
    assert pulled.returncode == 0 and "received" in pulled.stdout, pulled.stderr
    twice = run("pull", address, "--output", str(tmp_path / "device"))
    assert twice.returncode == 2 and "--replace" in twice.stderr
    wrong = run("push", str(bundle("int4")), "localhost/a:1")
    assert wrong.returncode == 2 and "is no address in a registry" in wrong.stderr
