"""ONNX Runtime on a CPU or a GPU, with a KV cache that is never copied.

The buffers of the cache are allocated once, [batch, kv heads, max length, head width], and bound as
both the past and the present of every run: the graph writes the new rows in place, where the provider computes.
GroupQueryAttention refuses several rows with several tokens over a past; such a feed is run row by row.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.engine.batch_session import BatchSession
from ernie_export.engine.compatibility import require_room
from ernie_export.engine.described import require_described
from ernie_export.engine.native_library import prepare
from ernie_export.engine.opened_graph import GIVEN, LOGITS_TO_KEEP, opened_graph
from ernie_export.engine.providers import CPU, Provider, buffer
from ernie_export.errors import WorkError
from ernie_export.names import PAST, PRESENT

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from ernie_export.engine.info import EngineInfo

    Array = NDArray[Any]


CACHE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
#: Most tokens of a row in one run.
PIECE = 512
#: Bytes that GroupQueryAttention's scores of a piece may take: of each head, over the whole length of the cache.
SCORES = 256 << 20


class OnnxRuntimeEngine:
    def __init__(
        self,
        folder: Path,
        info: EngineInfo,
        probes: Sequence[str] = (),
        given: Sequence[str] = (),
        threads: int | None = None,
        prepared: Path | None = None,
        provider: Provider = CPU,
    ):
        """`prepared` is a file with what `opened_graph` made for these probes: then nobody needs onnx here."""
        self.info, self.provider = info, provider
        self.probes, self.given = tuple(probes), tuple(given)
        if prepared:
            graph, library = prepared.read_bytes(), None
        else:
            made = opened_graph(folder / info.graph, probes, given)
            library = prepare(made, info.runtime)
            graph = made.SerializeToString()
        self.native = library is not None
        self.session = opened(graph, folder / info.graph, library, threads, provider)
        values = self.session.get_inputs() + self.session.get_outputs()
        require_described(folder / "engine.json", info, {value.name: value.shape for value in values})

    def start(self, batch: int = 1, max_length: int | None = None) -> OnnxRuntimeSession:
        length = max_length or self.info.max_context
        require_room(self.info, batch, length)
        return OnnxRuntimeSession(self, batch, length)


def opened(
    graph: bytes, path: Path, library: Path | None, threads: int | None, provider: Provider = CPU
) -> onnxruntime.InferenceSession:
    """A session on the graph that came from `path`, beside which its weights lie; `library` has operators for it.

    Raises:
        WorkError: the runtime refuses it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 4  # what goes wrong is raised, too
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        if library:
            options.register_custom_ops_library(str(library))
        session = onnxruntime.InferenceSession(graph, options, providers=provider.add_to(options))
    except WorkError:
        raise
    except Exception as error:  # the runtime's errors share no base class but this
        raise WorkError(
            f"ONNX Runtime {onnxruntime.__version__} refuses {path}: {first_line(error)}",
            "Check the bundle with `ernie-export verify`; if it is whole, build it again with this version.",
        ) from error
    if provider.name not in session.get_providers():  # it falls back to the CPU and raises nothing
        raise WorkError(
            f"ONNX Runtime {onnxruntime.__version__} does not start {provider.name}, and would run {path} on the CPU",
            "Look whether CUDA's libraries are there (`pip install 'onnxruntime-gpu[cuda,cudnn]'` brings them), "
            "and `nvidia-smi` lists the GPU.",
        )
    return session


class OnnxRuntimeSession(BatchSession):
    def __init__(self, engine: OnnxRuntimeEngine, batch: int, max_length: int):
        info = engine.info
        self.engine = engine
        scores = 4 * info.num_attention_heads * max_length
        piece = PIECE if engine.native else max(1, min(PIECE, SCORES // scores))
        super().__init__(batch, max_length, info.vocab_size, engine.probes, piece)
        shape = (batch, info.num_key_value_heads, max_length, info.head_dim)
        self.cache = Cache(engine.session, shape, engine.provider)

    def run(
        self, span: range, rows: list[list[int]], all_logits: bool, given: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        new = len(rows[0])
        lengths = np.array([len(self.tokens[slot]) for slot in span])
        total = int(lengths.max())
        binding = self.engine.session.io_binding()
        binding.bind_cpu_input("input_ids", np.array(rows, np.int64))
        binding.bind_cpu_input("attention_mask", (np.arange(total) < lengths[:, None]).astype(np.int64))
        binding.bind_cpu_input("position_ids", (lengths[:, None] - new + np.arange(new)).astype(np.int64))
        binding.bind_cpu_input(LOGITS_TO_KEEP, np.array([0 if all_logits else 1]))
        for name in self.engine.given:
            binding.bind_cpu_input(GIVEN + name, np.ascontiguousarray(given[name][None]))
        names = ["logits", *self.engine.probes]
        for name in names:
            binding.bind_output(name, "cpu")
        self.cache.bind(binding, span)
        try:
            self.engine.session.run_with_iobinding(binding)
        except Exception as error:  # the runtime's errors share no base class but this
            raise WorkError(
                f"ONNX Runtime fails on this graph: {first_line(error)}",
                "Check the bundle with `ernie-export verify`, and the memory that is left.",
            ) from error
        logits, *probed = (
            value.numpy() for value in binding.get_outputs()[: len(names)]
        )  # in the order of binding
        return logits, dict(zip(self.engine.probes, probed, strict=True))


class Cache:
    """A buffer [slots,KV,P,D] for every past that a graph has, of its type, where its provider computes."""

    def __init__(
        self, session: onnxruntime.InferenceSession, shape: tuple[int, ...], provider: Provider = CPU
    ):
        self.shape = shape
        self.provider = provider
        self.types = {
            value.name.removeprefix(PAST): np.dtype(CACHE_TYPES[value.type])
            for value in session.get_inputs()
            if value.name.startswith(PAST)
        }
        self.buffers = {name: buffer(provider, np.zeros(shape, dtype)) for name, dtype in self.types.items()}

    def bind(self, binding: Any, span: range) -> None:
        """The slots `span` of every buffer, as what is read and what is written: nothing is copied."""
        _, *inner = self.shape
        for name, held in self.buffers.items():
            dtype = self.types[name]
            begin = held.data_ptr() + span.start * math.prod(inner) * dtype.itemsize
            place = (self.provider.device, 0, dtype, (len(span), *inner), begin)
            binding.bind_input(PAST + name, *place)
            binding.bind_output(PRESENT + name, *place)


def first_line(error: Exception) -> str:
    """What the runtime says, without its codes and the places in its source."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", line)[-1].rstrip(".")
