"""Debian's docker-registry on loopback: with or without TLS and a password, started and stopped here."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

UNPACKED = Path(__file__).parents[2] / "build" / "docker-registry" / "usr" / "bin" / "docker-registry"
"""Where `make system-deps` puts it."""
USER, PASSWORD = "robot", "a password"


@dataclass
class DockerRegistry:
    port: int
    storage: Path
    log: Path
    ca: Path | None = None

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    def address(self, repository: str, tag: str = "1") -> str:
        return f"oci://{self.host}/{repository}:{tag}"


def program() -> str | None:
    return shutil.which("docker-registry") or (str(UNPACKED) if UNPACKED.is_file() else None)


@contextmanager
def running(folder: Path, tls: bool = False, password: bool = False) -> Iterator[DockerRegistry]:
    """A registry that keeps its blobs in `folder`, gone when the block ends; skips the test where there is none."""
    ran = program()
    if ran is None:
        pytest.skip("docker-registry is not here: run `make system-deps`")
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = DockerRegistry(port, folder / "storage", folder / "log", ca=folder / "ca.pem" if tls else None)
    config = folder / "config.yml"
    config.write_text(json.dumps(_config(folder, made, tls, password)))  # JSON is YAML too
    with made.log.open("ab") as log:
        process = subprocess.Popen([ran, "serve", str(config)], stdout=log, stderr=log)
        try:
            _await(port, process, made.log)
            yield made
        finally:
            process.terminate()
            process.wait(10)


def log_in(folder: Path, host: str, password: str = PASSWORD) -> Path:
    """A Docker config folder with the user's password."""
    folder.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return folder


def _config(folder: Path, made: DockerRegistry, tls: bool, password: bool) -> dict[str, object]:
    http: dict[str, object] = {"addr": f"127.0.0.1:{made.port}", "secret": "for uploads that go on later"}
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(made.storage)}},
        "http": http,
    }
    if tls:
        _write_certificate(folder)
        http["tls"] = {"certificate": str(folder / "server.pem"), "key": str(folder / "server.key")}
    if password:
        import bcrypt

        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        (folder / "htpasswd").write_text(f"{USER}:{hashed}\n")
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    return config


def _write_certificate(folder: Path) -> None:
    """A CA of our own, and what it signed for localhost."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, ca: bool):  # type: ignore[no-untyped-def]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA")])
    ca = certificate("a CA", ca_key, issuer, True).sign(ca_key, hashes.SHA256())
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    server = certificate("localhost", key, issuer, False).add_extension(names, critical=False)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(server.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    (folder / "server.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"docker-registry does not answer: {log.read_text()} ({os.uname().nodename})")
