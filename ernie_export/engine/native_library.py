"""The native operators of `native/`, where they have been built and this machine and this graph suit them.

Without them ONNX Runtime runs the function bodies in the graph, and copies every packed matrix into its
kernels' own order when an engine opens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

SOURCES = Path(__file__).parent / "native"
BUILT = SOURCES / "libernie_cpu.so"
"""`make native` builds it."""
SWITCH = "ERNIE_EXPORT_NATIVE"
"""An environment variable: `0` for none, or the path of another library."""
CPU_FLAGS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "f16c"}
CHUNK = 128
DOMAIN, LINEAR, EXPERTS = "ernie", "QuantizedLinear", "MoEExperts"


def library_for(model: onnx.ModelProto) -> Path | None:
    """The library to register before this graph is opened."""
    said = os.environ.get(SWITCH, "")
    path = Path(said) if said not in ("", "0") else BUILT
    usable = said != "0" and path.is_file() and cpu_flags() >= CPU_FLAGS and suits(model)
    return path if usable else None


def cpu_flags() -> set[str]:
    """What the first core can do, as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def suits(model: onnx.ModelProto) -> bool:
    """A library takes an operator over for all its nodes: so all must be packed, in rows of whole chunks."""
    widths = {initializer.name: list(initializer.dims) for initializer in model.graph.initializer}
    found = False
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type not in (LINEAR, EXPERTS):
            continue
        found = True
        bits = next((each.i for each in node.attribute if each.name == "bits"), 0)
        if bits not in (4, 8):
            return False
        names = node.input[1:2] if node.op_type == LINEAR else (node.input[3], node.input[5])
        if any(name not in widths or widths[name][-1] * 8 // bits % CHUNK for name in names):
            return False
    return found
