"""How fast: bytes and operations a second, beside what the same card copies and multiplies.

Every figure of ours is of a CUDA graph with many calls in it, so that it holds the kernels and not Python, and each
call has weights of its own: by the time the first ones are read again, more than four times the L2 has passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ernie_export.model import operators
from plugins.torch.operators import plain
from tests.gpu import made
from tests.gpu.kit import DTYPES, Kit
from tests.gpu.made import Packed

Calls = Sequence[Callable[[], Any]]
MOST_CALLS = 64


class Benchmark:
    def __init__(self, kit: Kit):
        self.kit, self.device = kit, kit.device.torch
        self.copy, self.matmul = ceilings(kit)

    def sets(self, nbytes: int) -> int:
        """How many sets of weights, of which a call reads `nbytes`, pass four times the L2 before one is read again."""
        wanted = math.ceil(4 * self.kit.device.about()["l2_bytes"] / nbytes) + 1
        return max(2, min(wanted, MOST_CALLS))

    def seconds(self, calls: Calls, tokens: int) -> float:
        """Of one call: a graph of all of them, replayed; of short ones many, so that its start counts little."""
        if tokens <= 16 and not self.kit.device.emulated:
            calls = [*calls] * math.ceil(MOST_CALLS / len(calls))

        def work() -> None:
            for call in calls:
                call()

        return self.kit.device.seconds(self.kit.device.captured(work)) / len(calls)

    def note(self, kernel: str, form: str, tokens: int, seconds: float, nbytes: float, flops: float) -> None:
        rates = {"gb_s": nbytes / seconds / 1e9, "tflop_s": flops / seconds / 1e12}
        parts = {"of_copy": nbytes / seconds / self.copy, "of_matmul": flops / seconds / self.matmul}
        row = {
            "kernel": kernel,
            "form": form,
            "tokens": tokens,
            "microseconds": seconds * 1e6,
            "bytes": nbytes,
        }
        self.kit.note(
            f"{kernel} {form}, {tokens} tokens: {seconds * 1e6:.1f} µs, {rates['gb_s']:.0f} GB/s "
            f"({parts['of_copy']:.0%} of copy), {rates['tflop_s']:.1f} TFLOP/s ({parts['of_matmul']:.0%} of matmul)",
            row | rates | parts,
        )

    def peer(self, kernel: str, form: str, tokens: int, seconds: Callable[[], float]) -> None:
        """Another's way to the same, noted as missing where it does not run here."""
        row: dict[str, Any] = {"kernel": kernel, "peer": form, "tokens": tokens}
        try:
            row["microseconds"] = seconds() * 1e6
        except Exception as problem:  # whatever this PyTorch on this card says
            self.kit.note(
                f"{kernel} by {form}: not here ({type(problem).__name__})",
                row | {"problem": str(problem)[:200]},
            )
        else:
            self.kit.note(f"{kernel} by {form}, {tokens} tokens: {row['microseconds']:.1f} µs", row)


def ceilings(kit: Kit) -> tuple[float, float]:
    """Bytes a second of a copy, read and written; operations a second of a dense fp16 product."""
    n, random = kit.sizes.multiplied, kit.generator(20)
    a, b = (made.activations(random, n, n, dtype=torch.float16) for _ in range(2))
    matmul = 2 * n**3 / kit.device.seconds(lambda: a @ b, warm=1)
    nbytes = min(kit.sizes.copied, kit.device.free_bytes() // 8)
    source, target = (torch.zeros(nbytes, dtype=torch.uint8, device=kit.device.torch) for _ in range(2))
    copy = 2 * nbytes / kit.device.seconds(lambda: target.copy_(source))
    kit.note(
        f"ceilings: copy {copy / 1e9:.0f} GB/s, fp16 matmul {matmul / 1e12:.1f} TFLOP/s",
        {"copy_gb_s": copy / 1e9, "matmul_tflop_s": matmul / 1e12},
    )
    return copy, matmul


@torch.inference_mode()
def run(kit: Kit) -> None:
    bench = Benchmark(kit)
    for part in (experts, linear, attention, routing):
        part(bench)
    kit.library.require_sound()


def experts(bench: Benchmark) -> None:
    sizes, random = bench.kit.sizes, bench.kit.generator(21)
    one = made.experts(random, sizes.experts, sizes.hidden, sizes.width)
    layers = [one]
    each = sizes.k * (one.gate_up.nbytes + one.down.nbytes) // sizes.experts
    while (len(layers) < bench.sets(each) and bench.kit.device.free_bytes() > 4 << 30) or len(layers) < 2:
        layers.append(made.experts(random, sizes.experts, sizes.hidden, sizes.width))
    flops = 6 * sizes.hidden * sizes.width * sizes.k
    for dtype, tokens in [(d, t) for t in (*sizes.decode, *reversed(sizes.prefill)) for d in DTYPES]:
        layers_used = layers if tokens <= 16 else layers[: max(2, len(layers) // 3)]
        calls: list[Callable[[], Any]] = []
        nbytes = 0
        for layer in layers_used:
            x = made.activations(random, 1, tokens, sizes.hidden, dtype=DTYPES[dtype])
            indices, scores = made.choices(random, tokens, sizes.experts, sizes.k, DTYPES[dtype])
            nbytes += layer.bytes_of(indices)
            calls.append(lambda layer=layer, x=x, i=indices, s=scores: layer.run(x, i, s))
        seconds = bench.seconds(calls, tokens)
        bench.note("experts", f"INT4 {dtype}", tokens, seconds, nbytes / len(calls), flops * tokens)
    x = made.activations(random, 1, sizes.decode[-1], sizes.hidden, dtype=torch.float16)
    for tokens in (1, sizes.decode[-1], sizes.prefill[-1]):
        x = made.activations(random, 1, tokens, sizes.hidden, dtype=torch.float16)
        chosen = made.choices(random, tokens, sizes.experts, sizes.k, torch.float16)
        up, down = one.gate_up, one.down
        given = (x, *chosen, up.data, up.scales, down.data, down.scales, up.bits, up.block_size)

        def dequantized(
            given: tuple[Any, ...] = given,
        ) -> float:  # it asks the device which experts: no graph holds it
            return bench.kit.device.seconds(lambda: plain(operators.moe_experts, *given), repeats=5)

        bench.peer("experts", "PyTorch, dequantize and matmul", tokens, dequantized)


def linear(bench: Benchmark) -> None:
    """The query projection, and in INT4 the shared experts' gate."""
    sizes, random = bench.kit.sizes, bench.kit.generator(22)
    for n, bits in ((sizes.hidden, 8), (2 * sizes.width, 4)):
        one = made.packed(random, (n, sizes.hidden), bits, 128)
        matrices = [
            one,
            *(made.packed(random, (n, sizes.hidden), bits, 128) for _ in range(bench.sets(one.nbytes) - 1)),
        ]
        for tokens in (*sizes.decode, *reversed(sizes.prefill)):
            x = made.activations(random, 1, tokens, sizes.hidden, dtype=torch.float16)
            forms = [(x, w.data, w.scales, w.bits, w.block_size) for w in matrices]
            calls: Calls = [lambda form=form: torch.ops.ernie.quantized_linear(*form) for form in forms]
            flops = 2 * n * sizes.hidden * tokens
            form = f"{n}x{sizes.hidden} INT{bits} fp16"
            bench.note("linear", form, tokens, bench.seconds(calls, tokens), one.nbytes, flops)
            if tokens in (1, sizes.decode[-1], sizes.prefill[-1]):
                linear_peers(bench, form, x, matrices)


def linear_peers(bench: Benchmark, form: str, x: torch.Tensor, matrices: list[Packed]) -> None:
    tokens, n, k = x.shape[1], len(matrices[0].data), x.shape[2]

    def dequantized() -> float:
        forms = [(w.data, w.scales, w.bits, w.block_size) for w in matrices[:2]]
        return bench.seconds([lambda f=f: plain(operators.quantized_linear, x, *f) for f in forms], tokens)

    def unquantized() -> float:
        weights = [
            torch.zeros(n, k, dtype=torch.float16, device=bench.device) for _ in range(bench.sets(2 * n * k))
        ]
        return bench.seconds([lambda w=w: F.linear(x, w) for w in weights], tokens)

    def tinygemm() -> float:
        """PyTorch's own kernel for INT4 weights and bf16, of the kind that Marlin is."""
        wide = x[0].bfloat16()
        packed = [torch._convert_weight_to_int4pack(w.data, 8) for w in matrices]
        scales = torch.ones(k // 128, n, 2, dtype=torch.bfloat16, device=bench.device)
        return bench.seconds(
            [lambda w=w: torch._weight_int4pack_mm(wide, w, 128, scales) for w in packed], tokens
        )

    kernel = f"linear {form}"
    bench.peer(kernel, "PyTorch, dequantize and matmul", tokens, dequantized)
    bench.peer(kernel, "PyTorch, matmul of fp16 weights", tokens, unquantized)
    if matrices[0].bits == 4:
        bench.peer(kernel, "PyTorch, _weight_int4pack_mm (bf16)", tokens, tinygemm)


def attention(bench: Benchmark) -> None:
    sizes, random = bench.kit.sizes, bench.kit.generator(23)
    model = (sizes.heads, sizes.kv_heads, sizes.head_dim)
    for bits in (16, 8):
        for batch in (1, sizes.decode[-1]):
            before = [sizes.context - 1] * batch
            one = made.cached(random, before, 1, sizes.context, *model, torch.float16, bits)
            steps = [one]
            while len(steps) < bench.sets(one.cache_bytes):
                steps.append(made.cached(random, before, 1, sizes.context, *model, torch.float16, bits))
            seconds = bench.seconds([step.run for step in steps], batch)
            flops = 4 * batch * sizes.heads * sizes.head_dim * sizes.context
            form = f"decode over {sizes.context}, cache {bits}"
            bench.note("attention", form, batch, seconds, one.cache_bytes, flops)
            if bits == 16:
                calls: Calls = [lambda step=step: sdpa(step) for step in steps]
                theirs = "PyTorch, scaled_dot_product_attention"
                bench.peer(f"attention {form}", theirs, batch, lambda c=calls, b=batch: bench.seconds(c, b))
        for tokens in reversed(sizes.prefill):
            step = made.cached(random, [0], tokens, sizes.context, *model, torch.float16, bits)
            flops = 2 * sizes.heads * sizes.head_dim * tokens * (tokens + 1)
            form = f"prefill, cache {bits}"
            bench.note("attention", form, tokens, bench.seconds([step.run], tokens), step.cache_bytes, flops)


def sdpa(step: made.Cached) -> torch.Tensor:
    query = step.query.unflatten(-1, (step.heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(query, step.keys, step.values, scale=step.scale, enable_gqa=True)


def routing(bench: Benchmark) -> None:
    sizes, random = bench.kit.sizes, bench.kit.generator(24)
    weight = torch.randn(sizes.experts, sizes.hidden, generator=random, device=random.device)
    bias = torch.zeros(sizes.experts, device=random.device)
    for tokens in (1, sizes.decode[-1], sizes.prefill[-1]):
        x = made.activations(random, 1, tokens, sizes.hidden, dtype=torch.float16)
        given = (x, weight, bias, sizes.k, 1e-12)
        seconds = bench.seconds([lambda given=given: torch.ops.ernie.moe_routing(*given)], tokens)
        bench.note("routing", "fp16", tokens, seconds, weight.nbytes + x.nbytes, 2 * tokens * weight.numel())
