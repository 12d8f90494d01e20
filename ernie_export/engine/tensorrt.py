"""TensorRT and TensorRT for RTX: the two engines of a bundle, opened and run.

The module (`tensorrt` or `tensorrt_rtx`) is what engine.json names; `tensorrt_variants.py` says in what they differ.
Weights are bound where the mapped files lie.  The cache is one buffer for past and present, into which the graph
writes the new rows; RTX fixes its length, else it is what the session asks for.  A decode step is captured as a
CUDA graph after its first run, and launched again from then on.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.engine import weight_map
from ernie_export.engine.batch_session import BatchSession
from ernie_export.engine.compatibility import TITLES, require_room
from ernie_export.engine.cuda import Device, Graph, MappedFile, Memory
from ernie_export.engine.described import require_described
from ernie_export.engine.tensorrt_variants import Variant, variant_of
from ernie_export.errors import UserError, WorkError
from ernie_export.names import IDS, LOGITS, MASK, PAST, POSITIONS, PRESENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ernie_export.engine.info import EngineInfo
    from ernie_export.graph.tensorrt_rtx import Phase

    Array = NDArray[Any]

KEPT = "kept"
NAMESPACE = "ernie"
PLUGINS = ("MoERouting", "MoEExperts", "QuantizedLinear", "CachedAttention")
PHASES: tuple[Phase, Phase] = ("prefill", "decode")
AGAIN = "Check the bundle with `ernie-export verify`; if it is whole, build it again here."


def engine_path(phase: Phase) -> str:
    """In a bundle."""
    return f"engines/{phase}.engine"


class TensorRTEngine:
    def __init__(
        self,
        folder: Path,
        info: EngineInfo,
        probes: Sequence[str] = (),
        given: Sequence[str] = (),
        built: Path | None = None,
    ):
        """`built`: the folder with the engines, where they do not lie in the bundle yet.

        Raises:
            UserError: they are not what engine.json describes, or do not show or take what is asked.
            WorkError: TensorRT refuses them, or there is too little memory.
        """
        requires = info.requires
        assert requires and requires.engine and requires.prefill
        if given:
            raise UserError(
                f"An engine of {TITLES[requires.module]} computes every value itself, {given[0]} cannot be given",
                "Ask the bundle's graph: `ernie-export validate` runs it on the CPU.",
            )
        self.info, self.probes = info, tuple(probes)
        trt: Any = importlib.import_module(requires.module)
        self.variant = variant_of(requires.module)
        self.device = Device()
        logger = _logger(trt)
        if requires.plugin:
            load_plugins(trt, folder / requires.plugin.path)
        self._runtime = trt.Runtime(logger)  # must outlive what it makes
        self.decode, self.prefill = (
            Opened(trt, self._runtime, logger, (built or folder) / binary.path)
            for binary in (requires.engine, requires.prefill)
        )
        for opened in (self.decode, self.prefill):
            require_described(folder / "engine.json", info, opened.shapes)
            opened.require_shown(probes)
        self._files: dict[str, MappedFile] = {}
        self.weights = self._bound(folder)
        self.prompt = self.prefill.context(self.variant)
        """One for all sessions: it needs the most scratch memory."""

    def _bound(self, folder: Path) -> dict[str, int]:
        """The address of every weight that the engines read."""
        places = weight_map.read(folder)
        wanted = {**self.prefill.weights, **self.decode.weights}
        addresses = {}
        for name, nbytes in wanted.items():
            place = places.get(name)
            if place is None or place.nbytes != nbytes:
                has = f"{place.nbytes} bytes of it" if place else "none of that name"
                raise UserError(
                    f"The engine reads {nbytes} bytes of {name}, the bundle {folder} has {has}",
                    "The files of two bundles were mixed: fetch or build it again.",
                )
            if place.file not in self._files:
                self._files[place.file] = MappedFile(self.device, folder / place.file)
            addresses[name] = self._files[place.file].address + place.offset
        return addresses

    def start(self, batch: int = 1, max_length: int | None = None) -> TensorRTSession:
        length = max_length or self.info.max_context
        require_room(self.info, batch, length)
        return TensorRTSession(self, batch, length)


class Opened:
    """One engine, and what it reads and gives."""

    def __init__(self, trt: Any, runtime: Any, logger: Any, path: Path):
        self.path, self._trt = path, trt
        self.engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            why = "; ".join(logger.errors) or "it says nothing of why"
            raise WorkError(f"{trt.__name__} {trt.__version__} refuses {path}: {why}", AGAIN)
        names = [self.engine.get_tensor_name(at) for at in range(self.engine.num_io_tensors)]
        is_input = {name: self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.shapes = {name: tuple(self.engine.get_tensor_shape(name)) for name in names}
        types = {name: self.engine.get_tensor_dtype(name) for name in names}
        self.inputs = [name for name in names if is_input[name]]
        self.outputs = [name for name in names if not is_input[name]]
        state = {IDS, POSITIONS, MASK, KEPT}
        self.weights = {
            name: int(np.prod(self.shapes[name], dtype=np.int64)) * int(types[name].itemsize)
            for name in self.inputs
            if name not in state and not name.startswith(PAST)
        }
        # Of all but the weights: numpy has no FP8.
        self.dtypes = {name: np.dtype(trt.nptype(types[name])) for name in names if name not in self.weights}

    def require_shown(self, probes: Sequence[str]) -> None:
        for name in probes:
            if name not in self.outputs:
                raise UserError(
                    f"The engine {self.path} does not show {name}",
                    "Ask the bundle's graph: `ernie-export validate` runs it on the CPU.",
                )

    def largest(self, name: str) -> tuple[int, ...]:
        """The shape of an input at the end of its profile."""
        return tuple(self.engine.get_tensor_profile_shape(name, 0)[-1])

    def context(self, variant: Variant) -> Any:
        if variant.specialises_kernels:
            config = self.engine.create_runtime_config()
            strategy = self._trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
            made = self.engine.create_execution_context(config)
        else:
            made = self.engine.create_execution_context()
        if made is None:
            raise WorkError(f"There is not enough memory to run {self.path}", "Stop what else uses the GPU.")
        return made


class TensorRTSession(BatchSession):
    def __init__(self, engine: TensorRTEngine, batch: int, max_length: int):
        prefill = engine.prefill
        piece = prefill.largest(IDS)[1]
        super().__init__(batch, max_length, engine.info.vocab_size, engine.probes, piece)
        self.engine, self.device = engine, engine.device
        fixed = prefill.shapes[f"{PAST}0.key"][2]
        self._rows = fixed if fixed > 0 else max_length
        """Of the cache, and columns of the mask."""
        past = {name: shape for name, shape in prefill.shapes.items() if name.startswith(PAST)}
        self._row_bytes = {
            name: shape[1] * self._rows * shape[3] * prefill.dtypes[name].itemsize
            for name, shape in past.items()
        }
        self._cache = {name: Memory(self.device, batch * size) for name, size in self._row_bytes.items()}
        self._mask = np.zeros((batch, self._rows), np.int64)
        width = np.dtype(np.int64).itemsize
        self._inputs = {
            name: Memory(self.device, width * max(batch, piece)) for name in (IDS, POSITIONS, KEPT)
        } | {MASK: Memory(self.device, self._mask.nbytes)}
        self._outputs = {
            name: Memory(
                self.device,
                max(batch, piece) * int(np.prod(prefill.shapes[name][2:])) * prefill.dtypes[name].itemsize,
            )
            for name in prefill.outputs
            if name != LOGITS and not name.startswith(PRESENT)
        }
        self._step: Any = None
        """The context of decode."""
        self._graph: Graph | None = None

    def run(
        self, span: range, rows: list[list[int]], all_logits: bool, given: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        new = len(rows[0])
        lengths = np.array([len(self.tokens[slot]) for slot in span])
        decoding = new == 1 and len(span) == len(self.tokens)
        kept = np.arange(new) if all_logits else np.array([new - 1])
        # They live until the device has read them: what it gives is waited for below.
        ids, positions = np.array(rows, np.int64), (lengths[:, None] - new + np.arange(new)).astype(np.int64)
        for name, values in ((IDS, ids), (POSITIONS, positions), (KEPT, kept)):
            self.device.write(self._inputs[name].address, values)
        self._show(span, lengths)
        opened = self.engine.decode if decoding else self.engine.prefill
        shapes = {name: (len(span), new, *opened.shapes[name][2:]) for name in (LOGITS, *self.probes)}
        shapes[LOGITS] = (len(span), len(kept), self.vocab_size)
        self._make_room(int(np.prod(shapes[LOGITS])) * opened.dtypes[LOGITS].itemsize)
        if decoding:
            self._decode(len(span))
        else:
            context = self.engine.prompt
            self._bind(opened, context, span, (1, new), len(kept))
            self._enqueue(context)
        logits, *probed = (
            self.device.read(self._outputs[name].address, shape, opened.dtypes[name])
            for name, shape in shapes.items()
        )
        return logits.astype(np.float32, copy=False), dict(zip(self.probes, probed, strict=True))

    def _show(self, span: range, lengths: Array) -> None:
        """Write what has changed of the mask: columns in the cache are 1."""
        for slot, length in zip(span, lengths, strict=True):
            wanted = (np.arange(self._rows) < length).astype(np.int64)
            (changed,) = np.nonzero(wanted != self._mask[slot])
            if changed.size:
                part = slice(int(changed[0]), int(changed[-1]) + 1)
                self._mask[slot, part] = wanted[part]
                place = (slot * self._rows + part.start) * self._mask.itemsize
                self.device.write(self._inputs[MASK].address + place, self._mask[slot, part])

    def _make_room(self, size: int) -> None:
        """For logits. A buffer that grows ends the captured step."""
        if LOGITS not in self._outputs or self._outputs[LOGITS].size < size:
            self._outputs[LOGITS] = Memory(self.device, size)
            self._graph = None

    def _decode(self, batch: int) -> None:
        if self._graph:
            self._graph.launch()
            return
        context = self._step = self._step or self.engine.decode.context(self.engine.variant)
        self._bind(self.engine.decode, context, range(batch), (batch, 1), 1)
        self._enqueue(context)
        if self._can_be_captured():
            self.device.wait()  # what the first run sets up is not to be part of the graph
            self._graph = self.device.captured(lambda: self._enqueue(context))

    def _can_be_captured(self) -> bool:
        if not self.engine.variant.tells_whether_capturable:
            return True
        return bool(self._step.is_stream_capturable(self.device.stream))

    def _bind(self, opened: Opened, context: Any, span: range, ids: tuple[int, int], kept: int) -> None:
        """Every address, and the shapes that are free: the rows `span` of the batch."""
        rows = len(span)
        shapes = {IDS: ids, POSITIONS: ids, MASK: (rows, self._rows), KEPT: (kept,)}
        addresses = {name: memory.address for name, memory in (self._inputs | self._outputs).items()}
        addresses[MASK] += span.start * self._rows * self._mask.itemsize
        for name, memory in self._cache.items():
            _, heads, _, width = opened.shapes[name]
            shapes[name] = (rows, heads, self._rows, width)
            place = memory.address + span.start * self._row_bytes[name]
            addresses[name] = addresses[name.replace(PAST, PRESENT)] = place
        addresses |= self.engine.weights
        for name in opened.inputs:
            if name in shapes and not context.set_input_shape(name, shapes[name]):
                raise WorkError(f"{opened.path} takes no {name} of the shape {list(shapes[name])}", AGAIN)
        for name in (*opened.inputs, *opened.outputs):
            if not context.set_tensor_address(name, addresses[name]):
                raise WorkError(f"{opened.path} takes no address for {name}", AGAIN)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self.device.stream):
            raise WorkError(
                "TensorRT fails on this engine",
                "Check the bundle with `ernie-export verify`, and the GPU's memory.",
            )


def load_plugins(trt: Any, library: Path) -> None:
    """
    Raises:
        WorkError: it cannot be loaded, or lacks one.
    """
    registry = trt.get_plugin_registry()

    def missing() -> list[str]:
        there = {each.name for each in registry.all_creators if each.plugin_namespace == NAMESPACE}
        return [name for name in PLUGINS if name not in there]

    if not missing():
        return  # for another engine of this process
    if registry.load_library(str(library.absolute())) is None:
        raise WorkError(
            f"{trt.__name__} {trt.__version__} does not load the plugins {library} ({_why_not(library)})",
            "Run `make plugins`, and build the kit again.",
        )
    if lacks := missing():
        raise WorkError(
            f"The plugins {library} lack {', '.join(lacks)}: they are another version's",
            "Run `make plugins`, and build the kit again.",
        )


def _why_not(library: Path) -> str:
    """As the system's loader tells it; TensorRT says nothing."""
    try:
        ctypes.CDLL(str(library.absolute()))
    except OSError as error:
        return str(error)
    return "the system does"


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message.strip())

    return Logger()
