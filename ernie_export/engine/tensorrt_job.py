"""One parse and build of TensorRT's, in a process of its own: a refused node may end it, and with it nothing else.

`python -m ernie_export.engine.tensorrt_job` reads a Job from its input and writes JSON lines: how far it is,
then a Result or what is wrong.  On a device this needs TensorRT's Python package alone.

TensorRT for RTX orders free sizes by where they lie in memory: the same engine comes out with a few bytes exchanged
unless memory is laid out as it was.  So it is: addresses are not random, and what this process is told is the same
(tensorrt_build.py): names of files, arguments, an environment that is empty but for where libraries are found.  The
build has a thread, and with that an arena, of its own.
"""

from __future__ import annotations

import importlib
import json
import re
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ernie_export.child import at_the_same_addresses, die_with_parent
from ernie_export.engine.tensorrt import load_plugins
from ernie_export.engine.tensorrt_variants import variant_of
from ernie_export.errors import WorkError

#: What the builder says of a graph that it takes otherwise than it is meant: each ends the build.
REFUSED = re.compile(r"unused input|fall(ing|s)? ?back", re.IGNORECASE)
LAYERS, SCRATCH = "Layers:", re.compile(r"Max Scratch Memory: (\d+) bytes")


Shapes = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True)
class Job:
    module: str
    """`tensorrt_rtx` or `tensorrt`."""
    graph: str
    engine: str
    layers: str
    """Where the list of the engine's layers is written."""
    profile: dict[str, Shapes]
    """Of the inputs whose sizes are free: the least, the usual and the largest shape."""
    workspace: int
    """Bytes of scratch memory that a layer may take."""
    compute_capabilities: list[str]
    """`8.9`; empty: the GPU's of this machine. For TensorRT for RTX alone."""
    plugins: str | None = None
    """The library of the operators that are no ONNX."""
    timing_cache: str | None = None
    """A file with the times of kernels that were tried before, for TensorRT; written anew."""
    memory: int | None = None
    """Bytes that this process may take."""


@dataclass(frozen=True)
class Result:
    version: str
    seconds: float
    cpu_seconds: float
    """Of all threads: what the build takes on a machine that does other things too."""
    peak_bytes: int
    scratch_bytes: int
    """Memory of the device that the engine needs beside its inputs and outputs."""
    layers: int


def build(job: Job) -> Result:
    """
    Raises:
        ValueError: TensorRT refuses the graph, or takes it otherwise than it is meant.
        WorkError: it does not load the plugins.
    """
    trt: Any = importlib.import_module(job.module)
    variant = variant_of(job.module)
    logger, monitor = _listeners(trt)
    if job.plugins:
        load_plugins(trt, Path(job.plugins))
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    begun = time.monotonic()
    if not parser.parse(Path(job.graph).read_bytes()):
        errors = [parser.get_error(at) for at in range(parser.num_errors)]
        raise ValueError("; ".join(f"{error.node_operator()}: {error.desc()}" for error in errors))
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.plugins:  # so that attention writes its cache in place
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if variant.builds_anywhere and job.compute_capabilities:
        config.num_compute_capabilities = len(job.compute_capabilities)
        for at, sm in enumerate(job.compute_capabilities):
            name = f"SM{sm.replace('.', '')}"
            if (capability := trt.ComputeCapability.__members__.get(name)) is None:
                raise ValueError(f"{job.module} {trt.__version__} builds nothing for compute capability {sm}")
            config.set_compute_capability(capability, at)
    profile = builder.create_optimization_profile()
    for name, shapes in job.profile.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    kept = Path(job.timing_cache) if job.timing_cache and variant.times_kernels else None
    if kept:
        earlier = kept.read_bytes() if kept.is_file() else b""
        # One that is damaged, or another version's, is none: all is timed anew.
        cache = config.create_timing_cache(earlier)
        if not (cache and config.set_timing_cache(cache, ignore_mismatch=False)):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None or logger.refused:
        raise ValueError("; ".join([*logger.refused, *logger.errors]) or "it says nothing of why")
    Path(job.engine).write_bytes(memoryview(engine))
    if kept:
        kept.write_bytes(memoryview(config.get_timing_cache().serialize()))
    layers, scratch = logger.layers, logger.scratch
    if not variant.builds_anywhere:  # the GPU that it was built for is here
        layers, scratch = _inspected(trt, logger, engine)
    Path(job.layers).write_text("".join(f"{line}\n" for line in layers))
    return Result(
        version=trt.__version__,
        seconds=round(time.monotonic() - begun, 1),
        cpu_seconds=round(time.process_time(), 1),
        peak_bytes=peak_memory(),
        scratch_bytes=scratch,
        layers=len(layers),
    )


def _inspected(trt: Any, logger: Any, engine: Any) -> tuple[list[str], int]:
    """The layers of an engine, each as JSON, and its scratch memory, as the inspector tells them."""
    runtime = trt.Runtime(logger)
    opened = runtime.deserialize_cuda_engine(engine)
    if opened is None:
        raise ValueError("; ".join(logger.errors) or "it does not open the engine that it built")
    told = opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return [json.dumps(layer) for layer in json.loads(told)["Layers"]], int(opened.device_memory_size_v2)


def peak_memory() -> int:
    """Bytes that this program held at most; getrusage would tell of the process that started it, too."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


def _listeners(trt: Any) -> tuple[Any, Any]:
    """What hears of TensorRT's messages and of its progress; subclasses of its own classes."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.refused: list[str] = []
            self.layers: list[str] = []
            self.scratch = 0

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message.strip())
            elif severity == trt.ILogger.WARNING and REFUSED.search(message):
                self.refused.append(message.strip())
            elif scratch := SCRATCH.match(message):
                self.scratch = int(scratch[1])
            elif message.startswith(LAYERS):
                self.layers += [line for line in message.splitlines() if line.startswith("Name:")]

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            tell(phase=phase, steps=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            tell(phase=phase, step=step)
            return True

        def phase_finish(self, phase: str) -> None:
            tell(phase=phase, finished=True)

    return Logger(), Monitor()


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    at_the_same_addresses()
    die_with_parent()
    job = Job(**json.loads(sys.stdin.read()))
    if job.memory:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory, job.memory))
    try:
        with ThreadPoolExecutor(1) as thread:  # its memory is its own, and lies the same whatever was before
            tell(result=asdict(thread.submit(build, job).result()))
    except WorkError as error:
        tell(error=error.cause)
    except (ValueError, ImportError) as error:
        tell(error=str(error))
    except MemoryError:
        tell(
            error="out of memory"
            if job.memory is None
            else f"it needs more than {job.memory >> 20} MiB of memory"
        )


if __name__ == "__main__":
    main()
