"""Blobs and manifests, up and down, with connections that break."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from ernie_export.distribute.address import Address
from ernie_export.distribute.registry import CHUNK, Registry, digest_of
from ernie_export.distribute.sessions import Sessions
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Silent
from tests.distribute.cutting_proxy import cutting
from tests.distribute.docker_registry import DockerRegistry, log_in, running

STEP = Silent().step("", None).__enter__()


def client(address: str, tmp_path: Path, ca_file: Path | None = None, plain_http: bool = True) -> Registry:
    sessions = Sessions(tmp_path / "uploads")
    return Registry(Address.parse(address), ca_file, plain_http and not ca_file, sessions, pause=0.01)


def random_file(path: Path, size: int) -> str:
    path.write_bytes(os.urandom(size))
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK + 12345])
def test_there_and_back(registry: DockerRegistry, tmp_path: Path, size: int) -> None:
    digest = random_file(tmp_path / "file", size)
    there = client(registry.address(f"sizes/of{size}"), tmp_path)
    assert not there.has(digest)
    there.upload(tmp_path / "file", digest, size, STEP)
    assert there.has(digest)
    there.download(digest, size, tmp_path / "back", STEP)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    assert not list((tmp_path / "uploads").iterdir())


def test_a_manifest_by_tag_and_by_digest(registry: DockerRegistry, tmp_path: Path) -> None:
    there = client(registry.address("manifests"), tmp_path)
    with pytest.raises(UserError, match="holds no oci://"):
        there.manifest()
    config = there.upload_bytes(b"{}")
    data = (
        f'{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":'
        f'{{"mediaType":"application/x","digest":"{config}","size":2}},"layers":[]}}'
    ).encode()
    digest = there.put_manifest(data)
    assert there.manifest() == (digest, data) == (digest_of(data), data)
    by_digest = client(str(there.address.at(digest)), tmp_path)
    assert by_digest.manifest() == (digest, data)


def test_a_connection_that_breaks_again_and_again(registry: DockerRegistry, tmp_path: Path) -> None:
    size = 3 * CHUNK
    digest = random_file(tmp_path / "file", size)
    with cutting(registry.port, after=5 << 20, times=4) as (port, cuts):
        there = client(f"oci://localhost:{port}/cut:1", tmp_path)
        there.upload(tmp_path / "file", digest, size, STEP)
        assert len(cuts) == 4
    with cutting(registry.port, after=10 << 20, times=4) as (port, cuts):
        there = client(f"oci://localhost:{port}/cut:1", tmp_path)
        there.download(digest, size, tmp_path / "back", STEP)
        assert len(cuts) == 4
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


def test_an_upload_goes_on_in_another_process(registry: DockerRegistry, tmp_path: Path) -> None:
    size = 3 * CHUNK
    digest = random_file(tmp_path / "file", size)
    first = client(registry.address("later"), tmp_path)
    ask, sent = first._connection.ask, 0

    def dying(method: str, *given: object, **how: object) -> object:
        nonlocal sent
        sent += method == "PATCH"
        if sent == 3:
            raise KeyboardInterrupt
        return ask(method, *given, **how)  # type: ignore[arg-type]

    first._connection.ask = dying  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.upload(tmp_path / "file", digest, size, STEP)

    second = client(registry.address("later"), tmp_path)
    again, bytes_sent = second._connection.ask, []

    def counting(*given: object, **how: bytes) -> object:
        bytes_sent.append(len(how.get("data") or b""))
        return again(*given, **how)  # type: ignore[arg-type]

    second._connection.ask = counting  # type: ignore[assignment, method-assign]
    second.upload(tmp_path / "file", digest, size, STEP)
    assert sum(bytes_sent) == CHUNK
    assert second.has(digest)


def test_a_connection_that_stays_broken(registry: DockerRegistry, tmp_path: Path) -> None:
    digest = random_file(tmp_path / "file", CHUNK)
    with cutting(registry.port, after=1 << 20, times=10**6) as (port, _):
        there = client(f"oci://localhost:{port}/broken:1", tmp_path)
        with pytest.raises(WorkError, match="Cannot upload file at localhost") as caught:
            there.upload(tmp_path / "file", digest, CHUNK, STEP)
    assert "goes on where it stopped" in caught.value.remedy


def test_what_was_received_is_not_fetched_again(registry: DockerRegistry, tmp_path: Path) -> None:
    digest = random_file(tmp_path / "file", CHUNK)
    there = client(registry.address("again"), tmp_path)
    there.upload(tmp_path / "file", digest, CHUNK, STEP)
    (tmp_path / "back").write_bytes((tmp_path / "file").read_bytes()[: CHUNK - 10])
    ask, asked = there._connection.ask, []

    def recording(*given: object, **how: object) -> object:
        asked.append(given[2])
        return ask(*given, **how)  # type: ignore[arg-type]

    there._connection.ask = recording  # type: ignore[assignment, method-assign]
    there.download(digest, CHUNK, tmp_path / "back", STEP)
    assert [headers["Range"] for headers in asked] == [f"bytes={CHUNK - 10}-"]
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


def test_other_bytes_are_noticed(registry: DockerRegistry, tmp_path: Path) -> None:
    digest = random_file(tmp_path / "file", 1000)
    there = client(registry.address("other"), tmp_path)
    with pytest.raises(UserError, match="is not the file that the manifest lists"):
        there.upload(tmp_path / "file", f"sha256:{'0' * 64}", 1000, STEP)
    there.upload(tmp_path / "file", digest, 1000, STEP)
    with pytest.raises(WorkError, match="is larger than the 999 bytes"):
        there.download(digest, 999, tmp_path / "back", STEP)
    [blob] = registry.storage.rglob(f"{digest.removeprefix('sha256:')}/data")
    blob.write_bytes(b"x" * 1000)
    with pytest.raises(WorkError, match="gave other bytes"):
        there.download(digest, 1000, tmp_path / "new", STEP)
    assert not (tmp_path / "new").exists()


def test_tls_and_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path / "registry", tls=True, password=True) as secure:
        address = secure.address("secret")
        with pytest.raises(UserError, match="cannot be trusted") as caught:
            client(address, tmp_path, plain_http=False)
        assert "--ca-file" in caught.value.remedy
        with pytest.raises(UserError, match="wants a password") as caught:
            client(address, tmp_path, ca_file=secure.ca)
        assert "docker login" in caught.value.remedy
        monkeypatch.setenv("DOCKER_CONFIG", str(log_in(tmp_path / "wrong", secure.host, "wrong")))
        with pytest.raises(UserError, match="401"):
            client(address, tmp_path, ca_file=secure.ca).has(f"sha256:{'0' * 64}")
        monkeypatch.setenv("DOCKER_CONFIG", str(log_in(tmp_path / "right", secure.host)))
        there = client(address, tmp_path, ca_file=secure.ca)
        digest = random_file(tmp_path / "file", CHUNK + 1)
        there.upload(tmp_path / "file", digest, CHUNK + 1, STEP)
        there.download(digest, CHUNK + 1, tmp_path / "back", STEP)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


def test_who_cannot_be_spoken_to(registry: DockerRegistry, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="does not answer"):
        client("oci://localhost:1/a:1", tmp_path)
    with pytest.raises(UserError, match="cannot be trusted") as caught:
        client(registry.address("a"), tmp_path, plain_http=False)
    assert "--plain-http" in caught.value.remedy
    path = tmp_path / "ca.pem"
    with pytest.raises(UserError, match="is no file"):
        client(registry.address("a"), tmp_path, ca_file=path)
    path.write_text("no certificate")
    with pytest.raises(UserError, match="holds no certificate"):
        client(registry.address("a"), tmp_path, ca_file=path)
    broken = tmp_path / "docker" / "config.json"
    broken.parent.mkdir()
    broken.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        client(registry.address("a"), tmp_path)


def test_without_oras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "oras", None)
    monkeypatch.setitem(sys.modules, "oras.provider", None)
    with pytest.raises(WorkError, match="oras is not installed"):
        client("oci://localhost:1/a:1", tmp_path)


@pytest.mark.slow
def test_a_file_of_two_gigabytes_in_little_memory(registry: DockerRegistry, tmp_path: Path) -> None:
    size = 2 << 30
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size)
    with (tmp_path / "file").open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    there = client(registry.address("large"), tmp_path)
    before = _anonymous()
    there.upload(tmp_path / "file", digest, size, STEP)
    there.download(digest, size, tmp_path / "back", STEP)
    assert (tmp_path / "back").stat().st_size == size
    assert _anonymous() - before < 128 << 20


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
