"""Every number of the plan that was measured or is assumed, and where it comes from.

Those of ONNX Runtime and of a build are measured again by `benchmarks/plan_memory.py`, which writes
what it finds beside what these numbers make of it (benchmarks/results/plan_memory.json).  Those of
TensorRT are assumptions, and `plan` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_export.plan.weights import Part

MIB = 1 << 20
FLOAT = 4

# ONNX Runtime 1.32 on the CPU, four shapes.

#: The libraries, Python and the process, before any weight.
CPU_OVERHEAD = 84 * MIB
#: What is left where it lies in its file; every other matrix is copied into the order of the kernels.
CPU_MAPPED: tuple[Part, ...] = ("embedding", "norms", "router", "rope")
#: Bytes of a scale, held as fp32 three times: as the graph has it, in the kernel's order, and in sums of blocks.
CPU_SCALE = 3 * FLOAT
#: Bytes of a weight of an fp16 linear layer, held as fp32 twice: as the graph has it, and in the kernel's order.
CPU_FP16_LINEAR = 2 * FLOAT
#: fp32 values held at the widest point of a portable expert layer, times experts · width; all experts are run.
CPU_EVERY_EXPERT = 7
#: The same of a layer's quantized experts, times chosen experts · width.
CPU_CHOSEN_EXPERT = 3
#: And of a layer without experts, times hidden + width.
CPU_DENSE = 4

#: Most tokens of a row at once, and bytes that attention's scores might take: engine/onnxruntime.py's own, by
#: which it cuts prompts. The scores themselves do not show in what is measured.
CPU_PIECE, CPU_SCORES = 512, 256 << 20
#: How often what a piece needs is held once rows are fed one after the other: a shape that comes again is given
#: one block of its own (ONNX Runtime's memory pattern) beside what the first run left.
CPU_AGAIN = 2

# TensorRT: assumed, nothing of it has run yet.

#: The CUDA context, the library and the process.
GPU_OVERHEAD = 600 * MIB
#: Bytes of a value between the layers: fp16.
GPU_ACTIVATION = 2
#: Most tokens that an engine of TensorRT for RTX is built to read at once: its scratch memory is of that many.
RTX_PIECE = 512

#: Bytes of a number in the KV cache: what engine/onnxruntime.py allocates; assumed for TensorRT.
CACHE_BYTES = {
    "onnxruntime-cpu": 4,
    "onnxruntime-cuda": 2,
    "onnxruntime-rtx": 2,
    "tensorrt": 2,
    "tensorrt_rtx": 2,
}
NATIVE_CACHE_BYTES = 2

# A build: anonymous memory with torch 2.13 and transformers 5.24, shapes of 0.01 to 0.4 B parameters.

#: Tracing the graph, and for each layer.
TRACE, TRACE_LAYER = 295 * MIB, 2 * MIB
#: The weight writer: its compiled code, and for each thread the pieces that it works on.
WRITER, PIECES = 30 * MIB, 20 * MIB
#: Bytes of a weight as published.
BF16 = 2

# Validation of 8 windows of 512 tokens, on layers of the true size of the 21B
# (benchmarks/full_size_validation.py).

#: torch, transformers, ONNX Runtime and what they leave behind.
REFERENCE = 450 * MIB
#: Tokens that the reference runs at once, and how often it then holds a value of the widest and of each state.
REFERENCE_AT_ONCE, REFERENCE_INNER, REFERENCE_HIDDEN = 4096, 3, 6
#: Tokens of which every operator is compared, and how often the states between the layers are held.
COMPARED_AT_ONCE, COMPARED = 512, 3
#: How often all the values that operators show stay, where the engine is run whole, and the rows of its batch.
RECORDED, COMPARED_ROWS = 1.4, 4
#: Bytes beside each number of an H [K, K] while a matrix is rounded for it: it damped and in another order, what
#: LAPACK makes of it, and its root, once as it is and once by its diagonal.
ROUNDING = 3 * 8 + 2 * FLOAT
#: The part of the free memory that validation takes: a choice.
MARGIN = 0.8
#: How often the head stands in memory as fp32, and the logits beside it.
HEADS, LOGITS = 3, 6
