"""What `deploy` shows: the table while it runs, and what it says in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from ernie_export.cli.deploy_table import LiveTable
from ernie_export.distribute.ssh_messages import Step
from ernie_export.distribute.ssh_rollout import HostResult
from tests.cli.pseudo_terminal import in_a_terminal
from tests.conftest import BuiltBundle
from tests.distribute.loopback_sshd import devices

PROGRAM = [sys.executable, "-m", "ernie_export"]
CLOSED = "127.0.0.1:1"
"""Nothing listens there."""


def shown(table: LiveTable, height: int = 30) -> list[str]:
    console = Console(width=110, height=height, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def busy() -> LiveTable:
    table = LiveTable("nano", [f"jetson-{number}" for number in range(1, 7)], canaries=1)
    for number in range(1, 6):
        table.connecting(f"jetson-{number}")
    table.step("jetson-2", Step(title="Fetch", done=2.5e6, total=10e6, unit="B"))
    table.step("jetson-3", Step(title="Try it"))
    table.ended(
        HostResult(host="jetson-1", canary=True, outcome="installed", generation=4, sent=10**7, seconds=75)
    )
    table.ended(
        HostResult(host="jetson-4", canary=False, outcome="failed", cause="It is off", remedy="Look.")
    )
    return table


def test_every_device_has_its_line() -> None:
    title, *lines = shown(busy())
    assert title == "nano to 6 devices: 1 done, 1 failed or left out"
    words = [line.split() for line in lines]
    assert [line[0] for line in words] == [f"jetson-{number}" for number in range(1, 7)]
    assert words[0][1:3] == ["canary", "installed"] and lines[0].endswith("generation 4, 10 MB sent, 1:15")
    assert words[1][1] == "fetch" and "2.5 MB / 10 MB" in lines[1]
    assert words[2][1:3] == ["try", "it"]
    assert words[3][1] == "failed" and lines[3].endswith("It is off")
    assert words[4][1] == "connecting" and words[5][1] == "waiting"


def test_what_has_no_room_is_what_matters_least() -> None:
    lines = shown(busy(), height=6)[1:]
    assert [line.split()[0] for line in lines] == ["jetson-2", "jetson-3", "jetson-5", "jetson-4"]


def test_a_terminal_sees_it_and_keeps_the_summary(bundle: BuiltBundle) -> None:
    arguments = ["deploy", str(bundle("int4")), "--to", CLOSED]
    seen = in_a_terminal(f"from ernie_export.cli import main; assert main({arguments!r}) == 1")
    assert "to 1 device: 0 done" in seen and "waiting" in seen
    assert "failed" in seen and "Is it on" in seen and "error: 127.0.0.1:1: It does not answer" in seen


def test_the_command(bundle: BuiltBundle, tmp_path: Path) -> None:
    with devices(tmp_path, 2) as fleet:
        words = ["deploy", str(bundle("int4")), *fleet.to(), "--canary", "1", "--root", str(tmp_path / "a b")]
        (tmp_path / "a b").mkdir()
        (tmp_path / "a b" / "policy.toml").write_text("unsigned = true\n")
        ran = subprocess.run([*PROGRAM, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[0] for line in ran.stdout.splitlines()[1:]] == ["device-1", "device-2"]
    assert (
        "device-1 (canary)  installed" in ran.stdout and "already active" in ran.stdout
    )  # they share a root here
    assert ran.stderr.splitlines()[0].startswith("device-1: installed (generation 1, ")


def test_json_and_the_exit_code(bundle: BuiltBundle, run) -> None:
    hosts = ["--to", CLOSED, "--to", "localhost:1", "--to", "localhost:2"]
    code, out, err = run("deploy", bundle("int4"), *hosts, "--canary", "1", "--json", "--quiet")
    assert code == 1 and err.count("\n") == 1
    assert "error: 1 of 3 devices failed (127.0.0.1:1), and 2 were left out. The table says why" in err
    assert [host["outcome"] for host in json.loads(out)["hosts"]] == ["failed", "left out", "left out"]


def test_ctrl_c_ends_it(bundle: BuiltBundle, tmp_path: Path) -> None:
    with devices(tmp_path, 1) as fleet:
        (device,) = fleet.devices
        device.run_instead('touch "$HOME/here"; exec sleep 60')
        words = ["deploy", str(bundle("int4")), *fleet.to()]
        # A shell may have started the tests with the signal ignored, which programs inherit.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen([*PROGRAM, *words], stderr=subprocess.PIPE, text=True, preexec_fn=heed)
        while not (device.folder / "home" / "here").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert time.monotonic() - begun < 20


def test_receive_is_not_for_people(tmp_path: Path) -> None:
    environment = {**os.environ, "ERNIE_EXPORT_ROOT": str(tmp_path)}
    ran = subprocess.run(
        [*PROGRAM, "device", "receive"], input="hello\n", capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 2 and ran.stderr.startswith(
        "error: No bundle is offered on stdin (line: Invalid JSON"
    )
    assert [json.loads(line)["kind"] for line in ran.stdout.splitlines()] == ["ernie-export", "failed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "-oProxyCommand=touch x"], "'-oProxyCommand=touch x' is no host"),
        (["--to", "a", "--to", "a"], "a is named twice"),
        (["--to", "a", "--canary", "1"], "--canary 1 of 1 leaves no device for later"),
        (["--to", "a", "--observe", "9"], "--observe is for canaries, and there are none"),
        (["--to", "a", "--ssh-config", "nowhere"], "nowhere is no file"),
        ([], "Missing option '--to'"),
    ],
)
def test_mistakes_are_told_before_anything_happens(
    bundle: BuiltBundle, run, words: list[str], message: str
) -> None:
    ran = run("deploy", bundle("int4"), *words)
    assert ran.code == 2 and ran.err.startswith(f"error: {message}") and ran.err.count("\n") == 1
