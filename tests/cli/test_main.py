"""What every command shares: errors, exit codes, global options, start-up."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ernie_export
from ernie_export.errors import UserError, WorkError

PROGRAM = [sys.executable, "-m", "ernie_export"]
COMMANDS = [
    "inspect",
    "build",
    "validate",
    "verify",
    "report",
    "diff",
    "generate",
    "chat",
    "plan",
    "bench",
    "bits",
    "sign",
    "push",
    "pull",
    "deploy",
    "triton",
    "synthesize",
    "doctor",
    "targets",
    "recipes",
    "device",
]
HEAVY = ["torch", "transformers", "onnx", "onnxruntime", "polygraphy", "numpy", "rich", "tokenizers"]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Makes `ernie-export targets` raise."""
    from ernie_export.target import Target

    def fail(exception: BaseException) -> None:
        def raising() -> list[Target]:
            raise exception

        monkeypatch.setattr(Target, "all", raising)

    return fail


@pytest.mark.parametrize("arguments", [[], ["--help"], ["build", "--help"], ["--version"]])
def test_help_needs_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from ernie_export.cli import main; main({arguments}); print(); print(*sys.modules)"
    loaded = python(code).splitlines()[-1].split()
    assert "typer" in loaded
    assert not set(HEAVY) & set(loaded)


def test_help_lists_every_command(run) -> None:
    ran = run("--help")
    assert ran.code == 0 and ran.err == ""
    assert [line.split()[0] for line in ran.out.partition("Commands:\n")[2].splitlines()] == COMMANDS


def test_without_a_command_the_help_is_a_message(run) -> None:
    ran = run()
    assert ran.code == 2 and ran.out == "" and "Commands:" in ran.err


DEVICE_COMMANDS = [
    f"device {word}" for word in ("install", "status", "settle", "rollback", "gc", "unit", "receive")
]


@pytest.mark.parametrize("command", [*COMMANDS, *DEVICE_COMMANDS])
def test_every_command_and_option_has_a_help_text(run, command: str) -> None:
    ran = run(*command.split(), "-h")
    assert ran.code == 0
    options = ran.out.partition("Options:\n")[2].partition("Commands:\n")[0]
    assert "--help" in options
    assert all(len(line.split("  ")) > 2 or line.startswith("    ") for line in options.splitlines() if line)


def test_version(run) -> None:
    assert run("--version") == (0, f"ernie-export {ernie_export.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bulid"], "error: No such command 'bulid'. Did you mean 'build'? See `ernie-export --help`."),
        (["build"], "error: Missing option '--target'. See `ernie-export build --help`."),
        (["build", "--out", "x"], "error: No such option: --out"),
        (
            ["recipes", "extra"],
            "error: Got unexpected extra argument",
        ),
        (["generate", "x", "--seed", "y"], "error: Invalid value for '--seed'"),
        (["--prompt", "build"], "error: No such option: --prompt"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(run, arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(message) and ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("exception", "code", "message"),
    [
        (UserError("A cause", "A remedy."), 2, "error: A cause. A remedy.\n"),
        (WorkError("A\n  cause", "A remedy."), 1, "error: A cause. A remedy.\n"),
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, "error: There is not enough memory. "),
        (
            OSError(errno.ENOSPC, "No space left on device", "/b/w.bin"),
            1,
            "error: /b/w.bin: No space left on device. Free",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/b"),
            1,
            "error: /b: Read-only file system. Choose a place",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/b"),
            1,
            "error: /b: Permission denied. Choose a place",
        ),
        (TimeoutError(), 1, "error: TimeoutError. Run with --debug"),
        (
            ModuleNotFoundError("x", name="torch"),
            1,
            "error: The package torch is not installed. `ernie-export doctor`",
        ),
        (
            KeyError("k"),
            1,
            "error: This is a defect of ernie-export (KeyError: 'k'). Run the same with --debug",
        ),
        (
            ImportError("x", name="ernie_export.y"),
            1,
            "error: This is a defect of ernie-export (ImportError: x).",
        ),
    ],
)
def test_whatever_happens_is_one_line(
    run, failing, exception: BaseException, code: int, message: str
) -> None:
    failing(exception)
    ran = run("targets")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(message) and ran.err.count("\n") == bool(message)


@pytest.mark.parametrize("place", [["--debug", "targets"], ["targets", "--debug"]])
def test_debug_shows_the_traceback_too(run, failing, place: list[str]) -> None:
    failing(UserError("A cause", "A remedy."))
    ran = run(*place)
    assert ran.code == 2
    assert ran.err.startswith("Traceback") and ran.err.endswith("\nerror: A cause. A remedy.\n")


@pytest.mark.parametrize("place", [["--quiet", "generate"], ["generate", "--quiet"]])
def test_global_options_may_stand_anywhere_but_behind_a_double_dash(
    run, small_bundle: Path, place: list[str]
) -> None:
    answer = run(*place, small_bundle, "--prompt", "x", "--max-tokens", "1")
    assert answer.code == 0
    assert run("recipes", "--", "--quiet").code == 2


def test_a_reader_that_went_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([*PROGRAM, "recipes"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_a_full_disk_below_stdout_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*PROGRAM, "recipes", "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: No space left on device. Free some disk space")
    assert ran.stderr.count("\n") == 1


RECIPES = ["fp32", "fp16", "int8", "fp8", "nvfp4", "int4", "int4-gptq", "int4-small", "int4-small-gptq"]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ernie-export b", ["build", "bench", "bits"]),
        ("ernie-export build --recipe ", RECIPES),
        ("ernie-export build --recipe int", ["int8", "int4", "int4-gptq", "int4-small", "int4-small-gptq"]),
        ("ernie-export build --target rtx", ["rtx", "rtx-4090", "rtx-5090", "rtx-pro-6000"]),
        ("ernie-export build --target h", ["h100", "h200"]),
    ],
)
def test_the_shell_completes(words: str, completed: list[str]) -> None:
    environment = {
        **os.environ,
        "_ERNIE_EXPORT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    ran = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True)
    assert ran.stdout.split() == completed
