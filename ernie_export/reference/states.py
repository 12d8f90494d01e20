"""What every operator of transformers' model reads and writes, under the names of the exported graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
States = dict[str, Array]


def states(model: Any, ids: Array) -> States:
    """ids [S] int64 → every named value of one run, [S, …], in the order in which they were computed.

    The names are those that graph/trace.py gives; `logits` comes last.
    """
    import torch

    found: States = {}
    with torch.inference_mode(), _watched(model, found):
        output = model(torch.from_numpy(ids[None]), use_cache=False)
    found["logits"] = output.logits[0].numpy()
    return found


@contextmanager
def _watched(model: Any, found: States) -> Iterator[None]:
    hooks: list[Any] = []

    def keep(name: str) -> Callable[[torch.Tensor], None]:
        def note(value: torch.Tensor) -> None:
            found[name] = value.reshape(-1, value.shape[-1]).numpy().copy()

        return note

    def output(module: Any, name: str) -> None:
        note = keep(name)
        hooks.append(
            module.register_forward_hook(lambda _m, _i, out: note(out[0] if isinstance(out, tuple) else out))
        )

    def entry(module: Any, name: str) -> None:
        note = keep(name)
        hooks.append(module.register_forward_pre_hook(lambda _m, inputs: note(inputs[0])))

    def routing(module: Any, prefix: str) -> None:
        scores, indices = keep(f"{prefix}.scores"), keep(f"{prefix}.indices")

        def note(_m: Any, _i: Any, out: tuple[torch.Tensor, ...]) -> None:
            indices(out[2])
            scores(out[1])

        hooks.append(module.register_forward_hook(note))

    output(model.model.embed_tokens, "embedding.output")
    for number, layer in enumerate(model.model.layers):
        here = f"layers.{number}"
        output(layer.input_layernorm, f"{here}.input_norm.output")
        for letter in "qkv":
            output(getattr(layer.self_attn, f"{letter}_proj"), f"{here}.attention.{letter}.output")
        entry(layer.self_attn.o_proj, f"{here}.attention.core.output")
        output(layer.self_attn.o_proj, f"{here}.attention.o.output")
        entry(layer.post_attention_layernorm, f"{here}.after_attention")
        output(layer.post_attention_layernorm, f"{here}.post_attention_norm.output")
        mlp, title = layer.mlp, "mlp"
        if hasattr(layer.mlp, "experts"):
            routing(layer.mlp.gate, f"{here}.routing")
            output(layer.mlp.experts, f"{here}.experts.output")
            mlp, title = layer.mlp.shared_experts, "shared"
        if mlp is not None:
            for kind in ("gate", "up", "down"):
                output(getattr(mlp, f"{kind}_proj"), f"{here}.{title}.{kind}.output")
        output(layer, f"{here}.output")
    output(model.model.norm, "norm.output")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
