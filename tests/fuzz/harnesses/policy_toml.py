"""policy.toml: whose bundles a device takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ernie_export.distribute.policy import Policy

JSON = False
TOKENS = (b"[[signers]]", b'name = "a"', b"public_key = ", b'identity = "b"', b'issuer = "c"', b"unsigned = true",
          b"downgrade = ", b"max_token_ms = ", b"memory_headroom = ", b"nan", b"inf", b"1e400", b"[", b"[signers]",
          b'"\\u0000"', b"1979-05-27", b'"""')  # fmt: skip


def seeds() -> Iterator[bytes]:
    yield b"unsigned = true\ndowngrade = true\nmax_token_ms = 50\nmemory_headroom = 0.1\n"
    yield b'[[signers]]\nname = "release"\npublic_key = "key.pem"\n'
    yield b'[[signers]]\nname = "ci"\nidentity = "https://a/b"\nissuer = "https://c"\n'


def parse(data: bytes, folder: Path) -> None:
    (folder / "key.pem").write_bytes(b"")
    (folder / "policy.toml").write_bytes(data)
    policy = Policy.read(folder / "policy.toml")
    assert policy.unsigned or policy.signers
    assert 0 <= policy.memory_headroom < 1 and (policy.max_token_ms is None or policy.max_token_ms > 0)
    assert all(signer.public_key is None or signer.public_key.is_file() for signer in policy.signers)
