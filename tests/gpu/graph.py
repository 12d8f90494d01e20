"""CUDA graphs of the kernels: captured once, replayed on other values, the same to the bit as launched anew."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.torch.model import empty_cache, loaded
from tests.gpu import ernie, made
from tests.gpu.end_to_end import two_layers
from tests.gpu.kit import Kit


def run(kit: Kit) -> None:
    different = [
        *(f"MoE of {tokens} tokens" for tokens in (1, kit.sizes.prefill[0]) if not moe(kit, tokens)),
        *(["a step of two layers"] if not step(kit) else []),
    ]
    kit.library.require_sound()
    if different:
        raise AssertionError(f"a replayed graph gives something else: {', '.join(different)}")


def moe(kit: Kit, tokens: int) -> bool:
    """Routing and experts: the choice is the device's alone, so other tokens take other experts in the same graph."""
    sizes, random = kit.sizes, kit.generator(10)
    layer = made.experts(random, sizes.experts, sizes.hidden, sizes.width)
    weight = torch.randn(sizes.experts, sizes.hidden, generator=random, device=random.device)
    bias = torch.zeros(sizes.experts, device=random.device)
    x = made.activations(random, 1, tokens, sizes.hidden, dtype=torch.float16)
    y = torch.empty_like(x)

    def work() -> None:
        indices, scores = torch.ops.ernie.moe_routing(x, weight / sizes.hidden**0.5, bias, sizes.k, 1e-12)
        y.copy_(layer.run(x, indices, scores))

    replay, same = kit.device.captured(work), True
    for _ in range(3):
        x.copy_(made.activations(random, 1, tokens, sizes.hidden, dtype=torch.float16))
        replay()
        replayed = y.clone()
        work()
        same = same and torch.equal(replayed, y) and bool(y.isfinite().all())
    kit.note(
        f"MoE, {tokens} tokens: {'the same' if same else 'DIFFERENT'}",
        {"name": f"moe {tokens}", "same": same},
    )
    return same


@torch.inference_mode()
def step(kit: Kit) -> bool:
    """A decode step of two whole layers with embedding and head, replayed for one token after the other."""
    subject, device = two_layers(kit), kit.device.torch
    model = loaded(subject.config, ernie.Parts(), subject.weights, torch.float16)  # type: ignore[arg-type]
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    position = torch.zeros(1, 1, dtype=torch.int64, device=device)
    mask = torch.zeros(1, subject.context, dtype=torch.int64, device=device)
    caches = [empty_cache(subject.config, 1, subject.context, device, torch.float16) for _ in range(2)]  # type: ignore[arg-type]
    logits = torch.empty(1, 1, subject.config.vocab_size, dtype=torch.float16, device=device)

    def work() -> None:
        logits.copy_(model(ids, mask, position, caches[0])[0])

    def place(at: int) -> None:
        ids.fill_(at * 37 % subject.config.vocab_size)
        position.fill_(at)
        mask[:, : at + 1], mask[:, at + 1 :] = 1, 0

    place(0)
    replay, same = kit.device.captured(work), True
    for at in range(3):
        place(at)
        replay()
        anew: Tensor = model(ids, mask, position, caches[1])[0]
        same = same and torch.equal(logits, anew) and bool(anew.isfinite().all())
    seconds = kit.device.seconds(replay)
    kit.note(
        f"a step of two layers, replayed: {'the same' if same else 'DIFFERENT'}, {seconds * 1e6:.0f} µs",
        {
            "name": "two layers with embedding and head, one token",
            "same": same,
            "microseconds": seconds * 1e6,
        },
    )
    return same
