"""Engines of TensorRT and of TensorRT for RTX, built from a lowered graph in a process of their own.

`ernie_export/graph/lower.py` makes the graphs.  Where a kit is built there is no ONNX: the graph is bytes here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ernie_export
from ernie_export.engine.tensorrt_job import Job, Result, Shapes
from ernie_export.engine.tensorrt_variants import variant_of
from ernie_export.errors import WorkError

if TYPE_CHECKING:
    import onnx

    from ernie_export.progress import Step

PACKAGE = Path(ernie_export.__file__).parents[1]
"""A folder, or a kit's program."""
GRAPH, ENGINE, LAYERS = "graph.onnx", "engine", "layers.txt"
SECONDS = 1800
MEMORY = 16 << 30
WORKSPACE = 4 << 30
#: Tokens of a prompt in one run, and those that its kernels are chosen for.
PIECE, USUAL = 512, 128


def build(
    graph: bytes,
    profile: dict[str, Shapes],
    engine: Path,
    layers: Path,
    module: str,
    step: Step,
    *,
    compute_capabilities: Iterable[str] = (),
    plugins: Path | None = None,
    timing_cache: Path | None = None,
    workspace: int = WORKSPACE,
    seconds: float = SECONDS,
    memory: int | None = MEMORY,
) -> Result:
    """Write the engine of a graph of `graph/lower.py`, and the list of its layers.

    Raises:
        WorkError: TensorRT is not there, refuses the graph, drops a part of it, crashes, or takes longer or
            more memory than it may.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / GRAPH).write_bytes(graph)
        job = Job(
            module=module, graph=GRAPH, engine=ENGINE, layers=LAYERS, profile=profile,
            workspace=workspace, compute_capabilities=list(compute_capabilities),
            plugins=str(plugins.absolute()) if plugins else None,
            timing_cache=str(timing_cache.absolute()) if timing_cache else None, memory=memory,
        )  # fmt: skip
        result = _run(job, folder, step, seconds)
        shutil.move(folder / ENGINE, engine)
        shutil.move(folder / LAYERS, layers)
    return result


def profile_of(graph: onnx.ModelProto, batch: int, context: int) -> dict[str, Shapes]:
    """Least, usual and largest shape of every input with a free size: rows, tokens and logits of a prompt, cache."""
    piece = min(PIECE, context)
    bounds = {
        "batch": (1, batch, batch),
        "sequence": (1, min(USUAL, context), piece),
        "kept": (1, 1, piece),
        "cache": (1, context, context),
    }
    result = {}
    for value in graph.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if any(size.dim_param for size in sizes):
            least, usual, largest = (
                [bounds[size.dim_param][at] if size.dim_param else size.dim_value for size in sizes]
                for at in range(3)
            )
            result[value.name] = (least, usual, largest)
    return result


def _environment(module: str) -> dict[str, str]:
    """All of it where a GPU is used, whose driver may be told something; else where libraries are found, no more:
    the same graph is to give the same bytes."""
    if not variant_of(module).builds_anywhere:
        return dict(os.environ)
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {"PYTHONHASHSEED": "0", **kept}


def _run(job: Job, folder: Path, step: Step, seconds: float) -> Result:
    """In `folder`, whose name the process does not hear."""
    command = [sys.executable, "-P", "-m", "ernie_export.engine.tensorrt_job"]
    path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    environment = _environment(job.module) | {"PYTHONPATH": path}
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=environment,
            cwd=folder,
        ) as process,
    ):
        assert process.stdin and process.stdout
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        said: dict[str, Any] = {}
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(asdict(job)))
                process.stdin.close()
            for line in process.stdout:
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if "step" in said:
                        step.advance()
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        complaints.seek(0)
        lines = [line.strip() for line in complaints if line.strip()]
    if "result" in said:
        return Result(**said["result"])
    if late.is_set():
        why = f"it takes longer than {seconds:.0f} seconds"
    elif process.returncode == -signal.SIGKILL:
        why = "out of memory: the system ended its process"
    else:
        why = said.get("error") or (lines[-1] if lines else f"its process ended with {process.returncode}")
    raise WorkError(
        f"{job.module} builds no engine of this graph: {why}",
        "Install what the target's stack names (`ernie-export targets`), or use a recipe with a smaller context.",
    )
