"""targets.toml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ernie_export import target
from ernie_export.target import Target

JSON = False
TOKENS = (b"[cpu]", b"description = ", b'status = "planned"', b'runtime = "tensorrt"', b"memory = { mib = ",
          b"source = ",
          b"bandwidth = { gb_per_s = ", b"stack = [", b"inf", b"nan", b'"""', b"[[", b"1979-05-27")  # fmt: skip


def seeds() -> Iterator[bytes]:
    whole = (Path(target.__file__).parent / "targets.toml").read_bytes()
    yield whole
    yield from (b"[" + table for table in whole.split(b"\n[")[1:])


def parse(data: bytes, folder: Path) -> None:
    path = folder / "targets.toml"
    path.write_bytes(data)
    for found in Target.read(path):
        assert found.memory is None or found.memory.bytes >= 0
