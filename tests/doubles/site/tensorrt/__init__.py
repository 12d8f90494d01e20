"""A double of TensorRT's Python package: the part of its interface that ernie-export uses, on ONNX Runtime's CPU.

What it builds of a graph is the graph's SHA-256. What it runs for it is the file of that name in the folder
TENSORRT_DOUBLE: the same graph with bodies in place of plugins (tests/doubles/prepare.py). Memory is what
the double of CUDA beside it gave. ONNX Runtime is the double's own need: it is found in TENSORRT_DOUBLE_SITE,
where the Python under test has none.

tests/engine/test_tensorrt_bindings.py holds every name and parameter against NVIDIA's own bindings.
"""

import ctypes
import enum
import functools
import hashlib
import os
import re
import sys
from pathlib import Path

import numpy as np
from cuda.bindings import runtime as cuda

sys.path.insert(0, os.environ.get("TENSORRT_DOUBLE_SITE", ""))
import onnxruntime

del sys.path[0]

__version__ = os.environ.get("TENSORRT_DOUBLE_VERSION", "10.16.0.72")
MAGIC = b"TensorRT double"
_TYPES = {"float": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32, "int8": np.int8}


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity


class IProgressMonitor:
    pass


class DataType(enum.Enum):
    FLOAT, HALF, INT64, INT32, INT8 = "float", "float16", "int64", "int32", "int8"
    FP8 = "float8e4m3fn"

    @property
    def itemsize(self):
        return 1 if self is DataType.FP8 else np.dtype(nptype(self)).itemsize


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class PreviewFeature(enum.Enum):
    ALIASED_PLUGIN_IO_10_03 = 0


class LayerInformationFormat(enum.Enum):
    JSON = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


def nptype(trt_type):
    if trt_type is DataType.FP8:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return _TYPES[trt_type.value]


class _Creator:
    def __init__(self, name):
        self.name, self.plugin_namespace, self.plugin_version = name, "ernie", "1"


class IPluginRegistry:
    all_creators = ()

    def load_library(self, plugin_path):
        content = Path(plugin_path).read_bytes()
        if not os.path.isabs(plugin_path) or not content.startswith(b"\x7fELF"):
            return None
        IPluginRegistry.all_creators = [
            _Creator(name)
            for name in ("MoERouting", "MoEExperts", "QuantizedLinear", "CachedAttention")
            if f"no {name}".encode() not in content
        ]
        return object()


def get_plugin_registry():
    return IPluginRegistry()


class IHostMemory(bytes):
    pass


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        assert len(min) == len(opt) == len(max) and all(
            a <= b <= c for a, b, c in zip(min, opt, max, strict=True)
        )
        self.shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return IHostMemory(self.data + f"{__version__};".encode())


class IBuilderConfig:
    progress_monitor = profiling_verbosity = None

    def __init__(self):
        self.profiles, self.pools, self.features, self.cache = [], {}, set(), None

    def set_memory_pool_limit(self, pool, pool_size):
        self.pools[pool] = pool_size

    def set_preview_feature(self, feature, enable):
        self.features.add(feature)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        data = bytes(serialized_timing_cache)
        return ITimingCache(data) if re.fullmatch(rb"([0-9.]+;)*", data) else None

    def set_timing_cache(self, cache, ignore_mismatch):
        if not ignore_mismatch and cache.data.replace(f"{__version__};".encode(), b""):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class INetworkDefinition:
    graph = None


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        plugins = b"plugin_namespace" in network.graph
        if plugins and PreviewFeature.ALIASED_PLUGIN_IO_10_03 not in config.features:
            self.logger.log(ILogger.ERROR, "a plugin aliases its inputs, and the preview feature is off")
            return None
        shapes = config.profiles[0].shapes
        for value in _session(_named(network.graph)).get_inputs():
            free = [at for at, size in enumerate(value.shape) if isinstance(size, str)]
            if bool(free) != (value.name in shapes):
                self.logger.log(ILogger.ERROR, f"the profile says nothing, or too much, of {value.name}")
                return None
        config.progress_monitor.phase_start("Building", None, 1)
        config.progress_monitor.step_complete("Building", 0)
        config.progress_monitor.phase_finish("Building")
        profile = repr(shapes).encode()
        return IHostMemory(MAGIC + __version__.encode().ljust(16) + _named(network.graph).encode() + profile)


class ParserError:
    def __init__(self, text):
        self.text = text

    def desc(self):
        return self.text

    def node_operator(self):
        return "QuantizedLinear"


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]

    def parse(self, model):
        if b"plugin_namespace" in model and not IPluginRegistry.all_creators:
            self.errors.append(ParserError("no plugin of that name"))
        elif not _runnable(_named(model)).is_file():
            self.errors.append(ParserError("the double was not prepared for this graph"))
        self.network.graph = bytes(model)
        return not self.errors


class EngineInspector:
    def get_engine_information(self, format):
        return '{"Layers": [{"Name": "one of the double\'s"}], "Bindings": []}'


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = None


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        data = bytes(serialized_engine)
        version = data[len(MAGIC) : len(MAGIC) + 16].strip()
        if not data.startswith(MAGIC) or version != __version__.encode():
            self.logger.log(ILogger.ERROR, "the engine is damaged, or of another version")
            return None
        at = len(MAGIC) + 16
        return ICudaEngine(data[at : at + 64].decode(), eval(data[at + 64 :].decode()))


class ICudaEngine:
    device_memory_size_v2 = 1 << 20

    def __init__(self, name, profile):
        self.session, self.profile = _session(name), profile
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.values = {value.name: value for value in values}
        self.inputs = {value.name for value in self.session.get_inputs()}

    @property
    def num_io_tensors(self):
        return len(self.values)

    def get_tensor_name(self, index):
        return list(self.values)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return [size if isinstance(size, int) else -1 for size in self.values[name].shape]

    def get_tensor_dtype(self, name):
        return DataType(self.values[name].type.removeprefix("tensor(").removesuffix(")"))

    def get_tensor_profile_shape(self, name, profile_index):
        return list(self.profile.get(name) or [self.get_tensor_shape(name)] * 3)

    def create_execution_context(self, runtime_config=None):
        return IExecutionContext(self)

    def create_runtime_config(self):
        return IRuntimeConfig()

    def create_engine_inspector(self):
        return EngineInspector()


class IExecutionContext:
    def __init__(self, engine):
        self.engine, self.addresses = engine, {}
        self.shapes = {name: tuple(engine.get_tensor_shape(name)) for name in engine.inputs}

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        within = len(shape) == len(most) and all(
            a <= b <= c for a, b, c in zip(least, shape, most, strict=True)
        )
        self.shapes[name] = tuple(int(size) for size in shape)
        return within

    def set_tensor_address(self, name, memory):
        self.addresses[name] = int(memory)
        return name in self.engine.values and memory % 2 == 0

    def is_stream_capturable(self, stream):
        return True

    def execute_async_v3(self, stream_handle):
        if self.addresses.keys() != self.engine.values.keys():
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if any(-1 in shape for shape in shapes.values()):
            return False
        cuda.put(stream_handle, lambda: self.run(shapes, addresses))
        return True

    def run(self, shapes, addresses):
        feed = {
            name: _memory(addresses[name], shape, nptype(self.engine.get_tensor_dtype(name)))
            for name, shape in shapes.items()
        }
        names = [name for name in self.engine.values if name not in self.engine.inputs]
        for name, value in zip(names, self.engine.session.run(names, feed), strict=True):
            value = np.ascontiguousarray(value)
            ctypes.memmove(addresses[name], value.ctypes.data, value.nbytes)


def _memory(address, shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


def _named(graph):
    return hashlib.sha256(graph).hexdigest()


def _runnable(name):
    return Path(os.environ["TENSORRT_DOUBLE"], f"{name}.onnx")


@functools.cache
def _session(name):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(_runnable(name)), options, providers=["CPUExecutionProvider"])
