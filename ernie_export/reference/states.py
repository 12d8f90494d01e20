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


def routing(router: Any, output: tuple[torch.Tensor, ...]) -> tuple[Array, Array, Array]:
    """What transformers' router gave → indices [T,k], scores [T,k], and choice [T,E], by which it chose."""
    logits, scores, indices = output
    # As the router itself does it; its output leaves the biased probabilities out.
    choice = router.moe_statics(logits.softmax(dim=1))
    return indices.numpy(), scores.numpy(), choice.numpy()


@contextmanager
def _watched(model: Any, found: States) -> Iterator[None]:
    watch = Watch(found)
    watch.output(model.model.embed_tokens, "embedding.output")
    for number, layer in enumerate(model.model.layers):
        watch.layer(layer, number)
    watch.output(model.model.norm, "norm.output")
    try:
        yield
    finally:
        watch.end()


class Watch:
    """Notes in `found` what modules of transformers compute, flattened to [tokens, …], until its end."""

    def __init__(self, found: States):
        self._found = found
        self._hooks: list[Any] = []

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def output(self, module: Any, name: str) -> None:
        note = self._keep(name)
        self._hooks.append(
            module.register_forward_hook(lambda _m, _i, out: note(out[0] if isinstance(out, tuple) else out))
        )

    def layer(self, layer: Any, number: int) -> None:
        """Every operator of a decoder layer."""
        here = f"layers.{number}"
        self.output(layer.input_layernorm, f"{here}.input_norm.output")
        for letter in "qkv":
            self.output(getattr(layer.self_attn, f"{letter}_proj"), f"{here}.attention.{letter}.output")
        self._entry(layer.self_attn.o_proj, f"{here}.attention.core.output")
        self.output(layer.self_attn.o_proj, f"{here}.attention.o.output")
        self._entry(layer.post_attention_layernorm, f"{here}.after_attention")
        self.output(layer.post_attention_layernorm, f"{here}.post_attention_norm.output")
        mlp, title = layer.mlp, "mlp"
        if hasattr(layer.mlp, "experts"):
            self._router(layer.mlp.gate, f"{here}.routing")
            self.output(layer.mlp.experts, f"{here}.experts.output")
            mlp, title = layer.mlp.shared_experts, "shared"
        if mlp is not None:
            for kind in ("gate", "up", "down"):
                self.output(getattr(mlp, f"{kind}_proj"), f"{here}.{title}.{kind}.output")
        self.output(layer, f"{here}.output")

    def _entry(self, module: Any, name: str) -> None:
        note = self._keep(name)
        self._hooks.append(module.register_forward_pre_hook(lambda _m, inputs: note(inputs[0])))

    def _router(self, module: Any, prefix: str) -> None:
        scores, indices = self._keep(f"{prefix}.scores"), self._keep(f"{prefix}.indices")

        def note(_m: Any, _i: Any, out: tuple[torch.Tensor, ...]) -> None:
            indices(out[2])
            scores(out[1])

        self._hooks.append(module.register_forward_hook(note))

    def _keep(self, name: str) -> Callable[[torch.Tensor], None]:
        def note(value: torch.Tensor) -> None:
            self._found[name] = value.reshape(-1, value.shape[-1]).numpy().copy()

        return note
