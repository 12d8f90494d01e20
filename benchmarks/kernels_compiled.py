"""What the compiler makes of the CUDA kernels, for each kernel and SM: registers, shared memory, stack,
spills, the occupancy that follows, which wide copies and tensor-core instructions the machine code has, and how
many instructions its innermost loop.

    python benchmarks/kernels_compiled.py [--sm 87 …] [--output FILE]

Writes benchmarks/results/kernels_compiled.json and the table in docs/kernels.md.  Needs nvcc, cuobjdump and
nvdisasm (`make .venv/.plugins`) and no GPU.  Threads and shared memory of a launch are those of the real launch
functions, run on the CPU by the emulation.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.doc_table import markdown, with_table  # noqa: E402

DOC = ROOT / "docs" / "kernels.md"
KERNELS = ROOT / "plugins" / "kernels"
RESULT = ROOT / "benchmarks" / "results" / "kernels_compiled.json"

#: Resident warps and blocks of an SM, and its shared memory in KiB, of which each block takes one more.
#: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".  Registers: 65,536.
SMS = {
    "80": (64, 32, 164),
    "86": (48, 16, 100),
    "87": (48, 16, 164),
    "89": (48, 24, 100),
    "90": (64, 32, 228),
    "100": (64, 32, 228),
    "103": (64, 32, 228),
    "110": (48, 24, 228),
    "120": (48, 24, 100),
    "121": (48, 24, 100),
}
#: What is counted in the machine code.
INSTRUCTIONS = {
    "mma": r"\bHMMA\.16816",
    "copies_16_bytes": r"\bLDGSTS\.E\.[A-Z0-9.]*128",
    "loads_16_bytes": r"\bLDG\.E\.[A-Z0-9.]*128",
    "spills": r"\b(STL|LDL)\b",
}


def sources_digest() -> str:
    """Of everything that is compiled; the table says of which it is."""
    digest = hashlib.sha256()
    for path in sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def output_of(*command: str | Path, within: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=within)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def nvcc_version() -> str:
    from plugins.build import toolkit

    release = re.search(r"V([\d.]+)", output_of(toolkit() / "bin" / "nvcc", "--version"))
    assert release
    return release[1]


def short(mangled: str) -> str:
    """linear_decode<fp16, 4, 1>, or, of no template, experts_sort"""
    name = output_of("c++filt", mangled).partition("(anonymous namespace)::")[2]
    name = re.sub(r"\(int\)|ernie::", "", name)
    name = re.match(r"\w+(<[^>]*>)?", name)[0]  # type: ignore[index]
    return name.replace("__half", "fp16").replace("__nv_bfloat16", "bf16")


def loop_of_mma(text: str) -> int:
    """Instructions of the shortest loop with a tensor-core instruction, as one kernel's code is written out: what a
    chunk of weights or a few keys cost a warp.  0: none."""
    labels: dict[str, int] = {}
    code: list[str] = []
    shortest = 0
    for line in text.splitlines():
        if label := re.match(r"\.(L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*);", line):
            code.append(instruction[1])
            back = re.search(r"\bBRA\b.*`\(\.(L_x_\d+)\)", instruction[1])
            if back and back[1] in labels:
                body = code[labels[back[1]] :]
                if any("HMMA" in part for part in body) and not 0 < shortest <= len(body):
                    shortest = len(body)
    return shortest


def compiled(sms: list[str], folder: Path) -> list[tuple[str, Path]]:
    """→ SM and machine code of each source for each SM, out of the objects that the build makes of them."""
    from plugins.build import build, toolkit

    found = []
    for of in sorted(build("cuda", folder, sm=";".join(sms)).glob("*.o")):
        (folder / of.stem).mkdir()
        output_of(toolkit() / "bin" / "cuobjdump", "-xelf", "all", of, within=folder / of.stem)
        cubins = {cubin.name.split(".")[-2]: cubin for cubin in (folder / of.stem).glob("*.cubin")}
        found += [(sm, cubins[f"sm_{sm}"]) for sm in sms]
    return found


def kernels_of(cubin: Path) -> dict[str, dict[str, int]]:
    """kernel → registers, stack, how many of each of INSTRUCTIONS, and `loop`, see loop_of_mma."""
    from plugins.build import toolkit

    binaries = toolkit() / "bin"
    usage = output_of(binaries / "cuobjdump", "-res-usage", cubin)
    found: dict[str, dict[str, int]] = {}
    for mangled, registers, stack in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", usage):
        found[mangled] = {"registers": int(registers), "stack": int(stack)}
    for text in re.split(r"\n\.text\.", output_of(binaries / "nvdisasm", "-c", cubin))[1:]:
        kernel = found[text.partition(":")[0]]
        for what, pattern in INSTRUCTIONS.items():
            kernel[what] = len(re.findall(pattern, text))
        kernel["loop"] = loop_of_mma(text)
    return {short(mangled): kernel for mangled, kernel in found.items()}


def launches() -> dict[str, tuple[int, int]]:
    """kernel → threads and dynamic shared memory, as launched."""
    import numpy as np

    from tests.plugins import exact, kernels

    random = np.random.default_rng(0)
    found: dict[str, tuple[int, int]] = {}

    def note(answer: Any, arguments: dict[str, str]) -> None:
        for kernel in answer.kernels:
            of = arguments.get(kernel.kernel)
            found[f"{kernel.kernel}<{of}>" if of else kernel.kernel] = (kernel.threads, kernel.shared)

    for name, dtype in kernels.TYPES.items():
        x = exact.activations(random, (16, 64), dtype)
        answer = kernels.routing(x, np.ones((4, 64), np.float32), np.zeros(4, np.float32), 2, flavour="plain")
        note(answer, {"router_logits": f"{name}, 8", "choose_experts": name})
        many = kernels.routing(
            np.tile(x, (2, 1)), np.ones((4, 64), np.float32), np.zeros(4, np.float32), 2, flavour="plain"
        )
        note(many, {"router_logits": f"{name}, 1"})
        for bits in (4, 8):
            gate_up, down = (exact.weights(random, (1, rows, 64), bits, 32) for rows in (128, 64))
            many = kernels.linear(np.tile(x, (2, 1)), down[0][0], down[1][0], bits, 32, flavour="plain")
            note(many, {"linear_prefill_tile": f"{name}, {bits}"})
            for groups, block in itertools.product((1, 2), (32, 128)):
                some = np.tile(x, 2)[: 8 * groups]  # [., 128]
                arguments = f"{name}, {bits}, {groups}, {'true' if block == 128 else 'false'}"
                layer = [exact.weights(random, (1, rows, 128), bits, block) for rows in (256, 128)]
                linear = kernels.linear(some, layer[1][0][0], layer[1][1][0], bits, block, flavour="plain")
                note(linear, {"linear_decode_tile": arguments})
                chosen = np.zeros((len(some), 1), np.int64), np.ones((len(some), 1), dtype)
                experts = kernels.experts(some, *chosen, (*layer[0], *layer[1]), bits, block, flavour="plain")
                note(experts, {"experts_gate_up": arguments, "experts_down": arguments})
            for tile, tokens in ((16, 20), (64, 40)):
                chosen = np.zeros((tokens, 1), np.int64), np.ones((tokens, 1), dtype)
                many = kernels.experts(
                    np.tile(x, (3, 1))[:tokens], *chosen, (*gate_up, *down), bits, 32, flavour="plain"
                )
                arguments = f"{name}, {bits}, {tile}"
                note(
                    many,
                    {"experts_gate_up_tile": arguments, "experts_down_tile": arguments, "experts_sum": name},
                )
        for head_dim, bits in itertools.product((32, 64, 128), (16, 8)):
            arguments = f"{name}, {bits}, {head_dim}"
            for tokens in (1, 33):
                row = exact.activations(random, (1, tokens, head_dim), dtype)
                past = np.zeros((1, 1, 80, head_dim), dtype if bits == 16 else np.uint8)
                scales = np.ones((1, 1, 80), np.float32)
                angles = np.ones((80, head_dim // 2), np.float32)
                lengths = np.zeros((1, tokens), np.int64), np.array([tokens - 1], np.int32)
                answer = kernels.attention(
                    *(row, row, row, (past, past), angles, angles, *lengths, 1, 80, 1.0),
                    (scales, scales) if bits == 8 else None,
                    flavour="plain",
                )
                names = ("attention_append_rows", "attention_part", "attention_tile")
                note(answer, dict.fromkeys(names, arguments) | {"attention_join_parts": name})
    return found


def occupancy(sm: str, registers: int, threads: int, shared: int) -> float:
    """Resident warps of an SM over the most it can have."""
    most_warps, most_blocks, shared_kib = SMS[sm]
    warps = -(-threads // 32)
    of_a_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        most_blocks,
        most_warps // warps,
        65536 // of_a_warp // warps,
        shared_kib * 1024 // (shared + 1024),
    )
    return round(blocks * warps / most_warps, 3)


def table(sms: list[str]) -> dict[str, Any]:
    launched = launches()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        cubins = compiled(sms, Path(folder))
        for (sm, _), kernels in zip(
            cubins, pool.map(kernels_of, (cubin for _, cubin in cubins)), strict=True
        ):
            for kernel, row in kernels.items():
                threads, shared = launched[kernel]
                full = {"threads": threads, "shared": shared, **row}
                full["occupancy"] = occupancy(sm, row["registers"], threads, shared)
                rows.setdefault(kernel, {})[sm] = full
    return {"nvcc": nvcc_version(), "sources": sources_digest(), "kernels": dict(sorted(rows.items()))}


def text_of(result: dict[str, Any]) -> str:
    """A row of the table on a line, so that a change shows as that row's."""
    lines = [f'  "nvcc": "{result["nvcc"]}",', f'  "sources": "{result["sources"]}",', '  "kernels": {']
    kernels = []
    for kernel, by_sm in result["kernels"].items():
        rows = ",\n".join(f'      "{sm}": {json.dumps(row)}' for sm, row in by_sm.items())
        kernels.append(f'    "{kernel}": {{\n{rows}\n    }}')
    return "\n".join(["{", *lines, ",\n".join(kernels), "  }", "}", ""])


def family(kernel: str) -> str:
    """Without template arguments, but for how many tokens a tile of experts is."""
    name = kernel.partition("<")[0]
    if name in ("experts_gate_up_tile", "experts_down_tile"):
        return f"`{name}`, {kernel.rstrip('>').split(', ')[-1]} tokens"
    return f"`{name}`"


def documented(document: str, result: dict[str, Any]) -> str:
    """The document with a row for each kernel, over its types, formats and SMs."""
    families: dict[str, list[dict[str, Any]]] = {}
    for kernel, by_sm in result["kernels"].items():
        families.setdefault(family(kernel), []).extend(by_sm.values())
    lines = []
    for name, rows in families.items():
        registers = [row["registers"] for row in rows]
        shared = max(row["shared"] for row in rows)
        memory = f"to {shared / 1024:.1f} KiB" if shared >= 1024 else f"{shared} bytes" if shared else "–"
        least = min(row["occupancy"] for row in rows)
        lines.append([name, f"{min(registers)}–{max(registers)}", memory, f"{least:.2f}"])
    table = markdown(["kernel", "registers", "dynamic shared memory", "least occupancy"], lines)
    return with_table(document, "kernels_compiled.py", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sm", nargs="+", choices=SMS, default=list(SMS))
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    result = table(arguments.sm)
    arguments.output.write_text(text_of(result))
    if arguments.output == RESULT:
        DOC.write_text(documented(DOC.read_text(), result))
    print(arguments.output)


if __name__ == "__main__":
    main()
