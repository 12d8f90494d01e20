"""A double of `cuda.bindings.runtime`: device memory is the CPU's, and a stream does at once what it is given.

CUDA_DOUBLE_MEMORY: bytes that there are. CUDA_DOUBLE_INTEGRATED: the device shares the CPU's memory.
"""

import ctypes
import enum
import os

cudaHostRegisterMapped, cudaHostRegisterReadOnly = 2, 8
LIMIT = int(os.environ.get("CUDA_DOUBLE_MEMORY", 1 << 40))
#: address → its bytes; what was registered; the work that is captured, or None; graphs by number; calls by name.
memory, registered, calls = {}, {}, {}
capturing, graphs = None, {}


class cudaError_t(enum.IntEnum):
    cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation = 0, 1, 2


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = range(3)


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal = range(2)


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrIntegrated = 18


OK = cudaError_t.cudaSuccess


def _called(name):
    calls[name] = calls.get(name, 0) + 1


def put(stream, work):
    """What a kernel launch is: done now, or noted where the stream is captured."""
    _called("launch")
    if capturing is None:
        work()
    else:
        capturing.append(work)


def cudaGetErrorString(error):
    return (OK, {1: b"invalid argument", 2: b"out of memory"}[error])


def cudaMalloc(size):
    if sum(len(buffer) for buffer in memory.values()) + size > LIMIT:
        return (cudaError_t.cudaErrorMemoryAllocation, None)
    buffer = (ctypes.c_char * size)()
    memory[ctypes.addressof(buffer)] = buffer
    return (OK, ctypes.addressof(buffer))


def cudaFree(devPtr):
    del memory[devPtr]
    return (OK,)


def cudaMemsetAsync(devPtr, value, count, stream):
    ctypes.memset(devPtr, value, count)
    return (OK,)


def cudaMemcpyAsync(dst, src, count, kind, stream):
    device = dst if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else src
    if not any(start <= device and device + count <= start + len(held) for start, held in memory.items()):
        return (cudaError_t.cudaErrorInvalidValue,)
    ctypes.memmove(dst, src, count)
    return (OK,)


def cudaStreamCreate():
    return (OK, 7)


def cudaStreamSynchronize(stream):
    return (OK,)


def cudaStreamBeginCapture(stream, mode):
    global capturing
    capturing = []
    return (OK,)


def cudaStreamEndCapture(stream):
    global capturing
    graph, capturing = capturing, None
    graphs[len(graphs) + 1] = graph
    return (OK, len(graphs))


def cudaGraphInstantiate(graph, flags):
    return (OK, graph)


def cudaGraphLaunch(graphExec, stream):
    _called("cudaGraphLaunch")
    for work in graphs[graphExec]:
        work()
    return (OK,)


def cudaGraphDestroy(graph):
    return (OK,)


def cudaGraphExecDestroy(graphExec):
    return (OK,)


def cudaDeviceGetAttribute(attr, device):
    return (OK, int("CUDA_DOUBLE_INTEGRATED" in os.environ))


def cudaHostRegister(ptr, size, flags):
    _called("cudaHostRegister")
    registered[ptr] = size
    return (OK,)


def cudaHostUnregister(ptr):
    del registered[ptr]
    return (OK,)


def cudaHostGetDevicePointer(pHost, flags):
    return (OK, pHost)
