"""The session of docs/fleet.md: `python -m tests.distribute.fleet_session` runs it and writes what is answered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ernie_export.checkpoint import embedded
from tests.distribute.docker_registry import running
from tests.distribute.loopback_sshd import SOURCES, Device, devices

DOCUMENT = SOURCES / "docs" / "fleet.md"
BLOCK = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
POLICY = '[[signers]]\nname = "release"\npublic_key = "release.pem"\n'
SERVICE = """\
restart = ["true"]
ready   = ["sh", "-c", "echo Ready? | ernie-export chat ~/bundles/current/bundle --system Briefly. --max-tokens 8"]
within  = 20
"""
CHANGES = (
    (r"\b[0-9a-f]{64}\b", "DIGEST"),
    (r"\b\d+:\d\d\b", "TIME"),
    (r"\d{4}-\d\d-\d\dT[0-9:.+-]+", "DATE"),
    (r"[0-9.]+ (bytes|kB|MB)", "SIZE"),
    (r"after \d+ s", "SECONDS"),
    (r"localhost:\d+", "REGISTRY"),
    (r"[^ ]*/nano-", "FOLDER/nano-"),
    (r"[ \t]+", " "),
)
"""What differs from run to run, and what stands in its place where two are compared."""


def replayed(document: str, folder: Path) -> str:
    """The document with the answers that its commands give now."""
    with _world(folder) as environment:
        return BLOCK.sub(lambda block: _block(block[0], folder / "work", environment), document)


def comparable(document: str) -> str:
    for pattern, replacement in CHANGES:
        document = re.sub(pattern, replacement, document)
    return document


def _block(text: str, folder: Path, environment: dict[str, str]) -> str:
    commands = [line for line in text.splitlines() if line.startswith("$ ")]
    return "".join(f"{command}\n{_answer(command[2:], folder, environment)}" for command in commands)


def _answer(command: str, folder: Path, environment: dict[str, str]) -> str:
    print(f"$ {command}", flush=True)
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"exec 2>&1; {command}"], cwd=folder, env=environment,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = [line.rstrip().replace(str(folder.parent), "…") for line in ran.stdout.splitlines()]
    print(*lines, sep="\n", flush=True)
    if ran.returncode:
        lines.append(f"(exit code {ran.returncode})")
    return "".join(f"{line}\n" for line in lines)


@contextmanager
def _world(folder: Path) -> Iterator[dict[str, str]]:
    """A registry, two devices, a checkpoint, and the environment in which all of them are found."""
    work = folder / "work"
    work.mkdir(parents=True)
    shutil.copytree(embedded.folder(), work / "checkpoint")
    (work / "policy.toml").write_text(POLICY)
    (work / "service.toml").write_text(SERVICE)
    with running(folder / "registry") as registry, devices(folder / "fleet", 2) as fleet:
        for device in fleet.devices:
            _prepare(device)
        programs = folder / "bin"
        programs.mkdir()
        # What ~/.ssh/config would do.
        _write_program(programs / "ssh", f'exec {shutil.which("ssh")} -F "{fleet.config}" "$@"')
        _write_program(programs / "ernie-export", f'exec "{sys.executable}" -m ernie_export "$@"')
        yield {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(SOURCES),
            "REGISTRY": registry.host,
            "DOCKER_CONFIG": str(folder / "docker"),
        }


def _prepare(device: Device) -> None:
    """Nothing is there yet but the program; its bundles are in the home folder of who logs in."""
    shutil.rmtree(device.root)
    device.root.mkdir()
    (device.folder / "home" / "bundles").symlink_to(device.root)


def _write_program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        written = replayed(DOCUMENT.read_text("utf-8"), Path(name))
    DOCUMENT.write_text(written, "utf-8")
