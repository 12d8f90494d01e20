"""The kernels, compiled for this machine's CPU, as functions on numpy arrays."""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st

from tests.plugins import worker

ROOT = Path(__file__).parents[2]
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
Field = tuple[str, str, Any]
Fields = list[Field]


@dataclass(frozen=True)
class Schedule:
    """order: 0 threads at random, 1 one warp far ahead, 2 one warp far behind; copies: 0 an
    asynchronous copy lands when it is waited for, 1 at once."""

    order: int = 0
    copies: int = 0
    seed: int = 0


AS_THEY_COME = Schedule()
#: Random examples, the same each time; not made smaller when one fails, since a crash costs a new process each time.
EXAMPLES = settings(deadline=None, phases=[Phase.explicit, Phase.generate], database=None, derandomize=True)
SCHEDULES = st.builds(Schedule, st.integers(0, 2), st.integers(0, 1), st.integers(0, 2**32))


@dataclass(frozen=True)
class Launch:
    kernel: str
    """Its name, without template arguments."""
    threads: int
    shared: int


@dataclass(frozen=True)
class Answer:
    arrays: dict[str, Any]
    weight_bytes: int
    kernels: list[Launch]

    @property
    def launches(self) -> int:
        return len(self.kernels)


class Refused(Exception):
    """The launch function's own words."""


class Crashed(AssertionError):
    """The process ended: what the sanitizer or the emulation said."""


class Library:
    def __init__(self, path: Path, flavour: str) -> None:
        environment = {**os.environ, "PYTHONMALLOC": "malloc"}
        if runtime := RUNTIMES.get(flavour):
            found = subprocess.run(
                ["g++", f"-print-file-name={runtime}"], capture_output=True, text=True, check=True
            )
            environment["LD_PRELOAD"] = found.stdout.strip()
        environment["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0:exitcode=98"
        environment["UBSAN_OPTIONS"] = "print_stacktrace=1"
        environment["TSAN_OPTIONS"] = "halt_on_error=1:exitcode=97:report_signal_unsafe=0"
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(Path(__file__).with_name("worker.py")), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
        )

    def call(self, function: str, fields: Fields, schedule: Schedule) -> Answer:
        """Raises Refused, or Crashed; after that the library is of no use."""
        assert self.process.stdin and self.process.stdout
        plain = [
            (name, kind, value.tobytes() if isinstance(value, np.ndarray) else value)
            for name, kind, value in fields
        ]
        try:
            request = (function, plain, (schedule.order, schedule.copies, schedule.seed))
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            message, outputs, weight_bytes, launches = pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError) as problem:
            code = self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace")
            raise Crashed(f"exit code {code}\n{said[:6000]}") from problem
        if message is not None:
            raise Refused(message)
        arrays = {
            name: np.frombuffer(outputs[name], value.dtype).reshape(value.shape)
            for name, kind, value in fields
            if kind == "out"
        }
        kernels = []
        for line in launches:
            name, threads, shared = line.rsplit(" ", 2)
            kernels.append(Launch(name.strip("()").partition("<")[0], int(threads), int(shared)))
        return Answer(arrays, weight_bytes, kernels)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def alive(self) -> bool:
        return self.process.poll() is None


@cache
def built(flavour: str) -> Path:
    """The folder with the libraries; ERNIE_KERNELS_<FLAVOUR> names one built elsewhere, of changed kernels."""
    named = os.environ.get(f"ERNIE_KERNELS_{flavour.upper()}")
    if named:
        return Path(named)
    command = [sys.executable, str(ROOT / "plugins" / "build.py"), flavour]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return Path(done.stdout.strip())


def workspace(function: str, fields: dict[str, int | None]) -> int:
    """What a launch function asks for; fields: those of its struct up to the last that matters, None a pointer."""
    plain = [(name, "null" if value is None else "i32", value) for name, value in fields.items()]
    library = ctypes.CDLL(str(built("plain") / "libernie_kernels.so"))
    return worker.workspace(library, function, worker.structure_of(plain))


running: dict[tuple[str, str], Library] = {}


@atexit.register
def end_all() -> None:
    """In order: what a library has counted of its lines it writes at its end."""
    for process in running.values():
        process.end()


def call(
    function: str,
    fields: Fields,
    schedule: Schedule = AS_THEY_COME,
    flavour: str = "address",
    library: str = "libernie_kernels.so",
    instead: Field | None = None,
) -> Answer:
    """One call of a launch function, in a process that is kept for the next; `instead` replaces a field."""
    if instead is not None:
        fields = [instead if field[0] == instead[0] else field for field in fields]
    process = running.get((library, flavour))
    if process is None or not process.alive():
        process = running[library, flavour] = Library(built(flavour) / library, flavour)
    return process.call(function, fields, schedule)
