"""Every kernel against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tests.gpu import exact, made
from tests.gpu.kit import DTYPES, Kit
from tests.gpu.made import Cached

#: Of the output's norm: half a unit in the last place and a little; experts and attention round once more.
LIMITS = {
    "linear": (5.2e-4, 4.1e-3),
    "experts": (8e-4, 6e-3),
    "attention": (1.2e-3, 9e-3),
    "routing": (5.2e-4, 4.1e-3),
}
#: Difference of two candidates' probability + bias, below which fp32 may order them either way.
TIE = 1e-6


class Checked(NamedTuple):
    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error < self.limit  # false for NaN


def run(kit: Kit) -> None:
    failed = []
    for part in (routing, linear, experts, expert_out_of_range, attention):
        for checked in part(kit):
            mark = "ok" if checked.passed else "FAILED"
            told = checked.error if math.isfinite(checked.error) else None
            kit.note(f"{checked.name}: error {checked.error:.1e} of {checked.limit:.1e} {mark}", {
                "name": checked.name, "error": told, "limit": checked.limit, "passed": checked.passed,
            })  # fmt: skip
            failed += [checked.name] if not checked.passed else []
    if int(kit.library.faults):
        failed.append("a kernel told of an index or a position out of range that was not")
    if failed:
        raise AssertionError(f"{len(failed)} checks failed: {', '.join(failed[:5])}")


def limit(kernel: str, dtype: str) -> float:
    return LIMITS[kernel][0 if dtype == "fp16" else 1]


def routing(kit: Kit) -> Iterator[Checked]:
    sizes, random = kit.sizes, kit.generator(1)
    for number, k in {(sizes.experts, sizes.k), (256, 16)}:
        weight = torch.randn(number, sizes.hidden, generator=random, device=random.device)
        weight = weight / sizes.hidden**0.5
        bias = torch.rand(number, generator=random, device=random.device) * 0.02
        for dtype, type_ in DTYPES.items():
            for tokens in (1, *sizes.prefill[:2]):
                x = made.activations(random, 1, tokens, sizes.hidden, dtype=type_)
                indices, scores = torch.ops.ernie.moe_routing(x, weight, bias, k, 1e-12)
                p = exact.probabilities(x, weight)
                error = exact.error(scores, chosen_scores(p, indices))
                if not chosen_right(p + bias.double(), indices, k):
                    error = math.nan
                yield Checked(
                    f"routing {number} experts top-{k}, {tokens} {dtype}", error, limit("routing", dtype)
                )


def chosen_scores(p: Tensor, indices: Tensor) -> Tensor:
    chosen = p.gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True).clamp(min=1e-12)


def chosen_right(choice: Tensor, indices: Tensor, k: int) -> bool:
    """The same set of experts, wherever it is no tie."""
    ranked = choice.sort(-1, descending=True)
    clear = ranked.values[..., k - 1] - ranked.values[..., k] > TIE
    same = indices.sort(-1).values == ranked.indices[..., :k].sort(-1).values
    return bool(same.all(-1)[clear].all())


def linear(kit: Kit) -> Iterator[Checked]:
    sizes, random = kit.sizes, kit.generator(2)
    forms = [(sizes.hidden, sizes.hidden, 4, 128), (sizes.hidden, sizes.hidden, 8, 128)]
    forms += [
        (2 * sizes.width, sizes.hidden, 4, 32),
        (sizes.hidden, 2 * sizes.width, 8, 64),
        (72, 384, 4, 64),
    ]
    for n, k, bits, block_size in forms:
        weight = made.packed(random, (n, k), bits, block_size)
        for dtype, type_ in DTYPES.items():
            for tokens in (1, 7, 16, 17, *sizes.prefill[:2]):
                x = made.activations(random, 1, tokens, k, dtype=type_)
                y = torch.ops.ernie.quantized_linear(x, weight.data, weight.scales, bits, block_size)
                name = f"linear {n}x{k} INT{bits} block {block_size}, {tokens} {dtype}"
                yield Checked(name, exact.error(y, exact.linear(x, weight)), limit("linear", dtype))


def experts(kit: Kit) -> Iterator[Checked]:
    sizes, random = kit.sizes, kit.generator(3)
    for bits, block_size in ((4, 128), (8, 128), (4, 32), (8, 64)):
        layer = made.experts(random, sizes.experts, sizes.hidden, sizes.width, bits, block_size)
        for dtype, type_ in DTYPES.items():
            for tokens in (1, 7, 16, 17, *sizes.prefill[:2]):
                x = made.activations(random, 1, tokens, sizes.hidden, dtype=type_)
                indices, scores = made.choices(random, tokens, sizes.experts, sizes.k, type_)
                for kind, chosen in (
                    ("", indices),
                    (" on the same experts", indices[:, :1].expand_as(indices)),
                ):
                    if kind and tokens not in (16, sizes.prefill[0]):
                        continue
                    error = exact.error(layer.run(x, chosen, scores), exact.experts(x, chosen, scores, layer))
                    name = f"experts INT{bits} block {block_size}, {tokens}{kind} {dtype}"
                    yield Checked(name, error, limit("experts", dtype))


def expert_out_of_range(kit: Kit) -> Iterator[Checked]:
    """Its token becomes NaN and the fault is told; the others are as they were."""
    sizes, random = kit.sizes, kit.generator(4)
    layer = made.experts(random, sizes.experts, sizes.hidden, sizes.width)
    for tokens in (4, sizes.prefill[0]):
        x = made.activations(random, 1, tokens, sizes.hidden, dtype=torch.float16)
        indices, scores = made.choices(random, tokens, sizes.experts, sizes.k, torch.float16)
        good = layer.run(x, indices, scores)
        indices[0, 2, 1] = sizes.experts
        bad = layer.run(x, indices, scores)
        told = bool(bad[0, 2].isnan().all()) and int(kit.library.faults) == 1
        kit.library.faults.zero_()
        others = [token for token in range(tokens) if token != 2]
        same = torch.equal(bad[0, others], good[0, others])
        yield Checked(f"an expert out of range, {tokens} tokens", 0.0 if told and same else math.nan, 1e-9)


def attention(kit: Kit) -> Iterator[Checked]:
    sizes, random = kit.sizes, kit.generator(5)
    of_model = (sizes.heads, sizes.kv_heads, sizes.head_dim)
    rows, long = sizes.context, sizes.context * 3 // 4
    steps = [("decode", [long], 1, of_model), ("decode", [long, 3, long // 2, 0], 1, of_model)]
    steps += [("decode", [long // 3, 5], 1, (6, 2, 64)), ("a few more", [long // 3], 5, (8, 2, 32))]
    steps += [("prefill", [0], tokens, of_model) for tokens in sizes.prefill[:2]]
    steps += [("more prefill", [long // 2, 7], sizes.prefill[0], of_model)]
    for kind, before, tokens, (heads, kv_heads, head_dim) in steps:
        for dtype, type_ in DTYPES.items():
            for bits in (16, 8):
                step = made.cached(random, before, tokens, rows, heads, kv_heads, head_dim, type_, bits)
                most = limit("attention", dtype)
                name = f"attention {kind}, {tokens} on {max(before)} x{len(before)}, D {head_dim}, cache {bits} {dtype}"
                yield Checked(name, attention_error(step, most), most)


def attention_error(step: Cached, limit: float) -> float:
    """The worst of the batch's rows; NaN where the cache does not hold what it must."""
    output, worst = step.run(), 0.0
    for row in range(len(output)):
        for meant, codes, scales in zip(
            exact.new_rows(step, row),
            (step.keys, step.values),
            (step.key_scales, step.value_scales),
            strict=True,
        ):
            at = step.position_ids[row]
            kept = exact.stored(codes[row, :, at], None if scales is None else scales[row, :, at]).transpose(
                0, 1
            )
            # With 8 bits half a step of the row's scale, and the rounding to the type before it.
            steps = limit if scales is None else 0.5 / 127 + 2 * limit
            if not bool(((kept - meant).abs() <= meant.abs().amax(-1, keepdim=True) * steps).all()):
                return math.nan
        worst = max(worst, exact.error(output[row], exact.attention(step, row)))
    return worst
