"""The stages of a build that load the engine, each in a process of its own: a crash, a hang or a system that is
out of memory takes nothing else along.

    python -m ernie_export.kit.stage NAME KIT WORK THREADS CONTEXT     prints its result as JSON
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ernie_export
from ernie_export.child import die_with_parent
from ernie_export.errors import ErnieExportError, UserError, WorkError
from ernie_export.kit.contents import Contents
from ernie_export.kit.fitting import less
from ernie_export.kit.runtimes import runtime_of
from ernie_export.progress import Silent

OUT_OF_MEMORY = re.compile(
    r"bad.alloc|allocat|out.?of.?memory|cannot allocate|not enough memory", re.IGNORECASE
)
"""As runtimes tell it; ONNX Runtime has no exception of its own for it."""
REPEATS = 3
Result = dict[str, Any]


def engine(contents: Contents, work: Path, threads: int | None, context: int) -> Result:
    """Build it: seconds, bytes of memory that are the process's own at most, and what it requires from now on."""
    from ernie_export.bench.memory import Highest

    with Highest() as highest:
        made = runtime_of(contents.info.runtime).build(contents, work, threads)
    return {"requires": made.requires, "highest_anonymous": max(highest.anonymous, made.peak_bytes)}


def answers(contents: Contents, work: Path, threads: int | None, context: int) -> Result:
    """What it answers to the self-check, held against what the checkpoint's own model said."""
    from ernie_export.validate.asking import tried
    from ernie_export.validate.gates import evaluate
    from ernie_export.validate.selfcheck import SelfCheck

    check, runtime = SelfCheck.read(contents.folder), runtime_of(contents.info.runtime)
    seen = tried(check, lambda probes: runtime.open(contents, work, probes, threads))
    bounds = {name: bound for name, bound in check.about.bounds.items() if name in seen.metrics}
    prompts, tokens = check.tokens.shape
    return {
        "tried": asdict(seen),
        "gates": [asdict(result) for result in evaluate(seen.metrics, bounds)],
        "inputs": {"windows": prompts, "tokens": tokens, "sha256": check.tokens_sha256},
    }


def speed(contents: Contents, work: Path, threads: int | None, context: int) -> Result:
    """Prefill and decode at the lengths that the kit names and the context holds."""
    from ernie_export.bench import speed as measure
    from ernie_export.bench.memory import held
    from ernie_export.plan import machine

    plan = contents.plan
    prompts = [length for length in plan["prefill"] if length <= context] or [context]
    decoded = [each for each in plan["decode"] if each["context"] + plan["tokens"] <= context]
    cache = max(*prompts, *(each["context"] + plan["tokens"] for each in decoded), 0)
    known = plan.get("bandwidth")
    before = known or machine.bandwidth()
    opened = runtime_of(contents.info.runtime).open(contents, work, (), threads)
    session = opened.start(1, cache)
    with Silent().step("") as step:
        prefill = measure.prefill(opened, session, prompts, REPEATS, step)
        contexts = [each["context"] for each in decoded]
        decode = measure.decode(opened, session, contexts, plan["tokens"], step) if decoded else []
    memory = held()
    bandwidth = known or max((rate for rate in (before, machine.bandwidth()) if rate), default=None)
    return {
        "threads": threads or len(os.sched_getaffinity(0)),
        "bandwidth": bandwidth,
        "memory": asdict(memory),
        "prefill": [asdict(each) for each in prefill],
        "decode": [
            asdict(each) | {"bytes": reads["bytes"], "bytes_per_second": reads["bytes"] / each.seconds}
            for each, reads in zip(decode, decoded, strict=True)
        ],
    }


STAGES = {stage.__name__: stage for stage in (engine, answers, speed)}


def run(name: str, contents: Contents, work: Path, threads: int | None, context: int) -> Result:
    """Run a stage in a process of its own.

    Raises:
        UserError: what the kit holds cannot be used.
        WorkError: the runtime refuses, crashes, or has too little memory.
    """
    words = [name, str(contents.folder), str(work), str(threads or 0), str(context)]
    package = str(Path(ernie_export.__file__).parents[1])  # a folder, or the program's own zip file
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        out, err = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        said = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        raise _crash(process.returncode, err, less(contents, context)) from None
    if "error" in said:
        exit_code, cause, remedy = said["error"]
        raise _told(exit_code, cause, remedy, less(contents, context))
    return dict(said["made"])


def _told(exit_code: int, cause: str, remedy: str, change: str) -> ErnieExportError:
    if OUT_OF_MEMORY.search(cause):
        return _memory(cause, change)
    return UserError(cause, remedy) if exit_code == UserError.exit_code else WorkError(cause, remedy)


def _crash(exit_code: int, err: str, change: str) -> WorkError:
    last = (err.strip().splitlines() or [""])[-1][:300]
    if exit_code == -signal.SIGKILL or OUT_OF_MEMORY.search(last):
        return _memory(last or "the system ended its process", change)
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return WorkError(
        f"The engine crashes on this device ({how}{f': {last}' if last else ''})",
        "Run it again; if it stays so, build the kit anew or for another runtime.",
    )


def _memory(why: str, change: str) -> WorkError:
    return WorkError(f"There is too little memory for the engine ({why})", change)


def main(name: str, folder: str, work: str, threads: str, context: str) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    try:
        made = STAGES[name](Contents(Path(folder)), Path(work), int(threads) or None, int(context))
        said: Result = {"made": made}
    except MemoryError:
        said = {"error": [WorkError.exit_code, "out of memory", ""]}
    except ErnieExportError as error:
        said = {"error": [error.exit_code, error.cause, error.remedy]}
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
