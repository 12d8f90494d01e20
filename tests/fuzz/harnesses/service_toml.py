"""service.toml: how a device's service is restarted, and when it is ready."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ernie_export.device.service import Service

JSON = False
TOKENS = (b"restart = ", b"ready = ", b"within = ", b'["true"]', b"[]", b"nan", b"inf", b"-1", b"1e400", b'"""',
          b'"\\u0000"', b"[[", b"1979-05-27", b"true")  # fmt: skip


def seeds() -> Iterator[bytes]:
    yield b'restart = ["systemctl", "restart", "ernie.service"]\nready = ["true"]\nwithin = 120\n'
    yield b'restart = ["a"]\nready = ["b", "c"]\n'


def parse(data: bytes, folder: Path) -> None:
    (folder / "service.toml").write_bytes(data)
    service = Service.read(folder / "service.toml")
    assert service.restart and service.ready and 0 < service.within < float("inf")
    assert not any("\0" in word for word in [*service.restart, *service.ready])
