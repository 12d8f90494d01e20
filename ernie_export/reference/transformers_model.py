"""What is right: transformers' own ERNIE-4.5, in fp32, with its routers observed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.errors import WorkError
from ernie_export.reference.quiet import quiet
from ernie_export.reference.states import routing
from ernie_export.reference.threads import SMALL, run_on_one_thread

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]


@dataclass
class ReferenceOutput:
    """B rows, S tokens, V vocabulary, k experts a token out of E; the dicts have an entry per MoE layer."""

    logits: Array
    """[B,S,V] float32."""
    indices: dict[int, Array]
    """[B,S,k] int64: the chosen experts."""
    scores: dict[int, Array]
    """[B,S,k] float32: their normalised weights."""
    choice: dict[int, Array]
    """[B,S,E] float32: probability + correction bias, by which they were chosen."""


class Reference:
    def __init__(self, model: Any):
        """`model`: transformers' Ernie4_5_MoeForCausalLM or Ernie4_5ForCausalLM in fp32."""
        self._model = model.eval()
        # transformers 5.24 renamed past_key_values, the argument and the output alike.
        parameters = inspect.signature(model.forward).parameters
        self._cache = "cache" if "cache" in parameters else "past_key_values"
        self._seen: dict[int, tuple[Array, Array, Array]] = {}
        routers = {
            layer: block.mlp.gate
            for layer, block in enumerate(model.model.layers)
            if hasattr(block.mlp, "experts")
        }
        self.moe_layers: tuple[int, ...] = tuple(routers)
        self.vocab_size: int = model.config.vocab_size
        for layer, router in routers.items():
            router.register_forward_hook(self._observer(layer))
        if sum(parameter.numel() for parameter in model.parameters()) < SMALL:
            run_on_one_thread(model)

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """The checkpoint in `folder`, all of it in memory as fp32, nothing fetched from anywhere.

        Raises:
            UserError: the folder holds no ERNIE-4.5 config.
            WorkError: transformers cannot load the weights, or would load only a part of them.
        """
        import torch
        import transformers

        architecture = ErnieConfig.read(folder).architecture
        with quiet():
            try:
                model, loaded = getattr(transformers, architecture).from_pretrained(
                    folder,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    experts_implementation="eager",
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # so that they are named to us
                    output_loading_info=True,
                )
            except Exception as error:  # transformers and safetensors raise what they like
                reason = str(error).strip().partition("\n")[0]
                raise WorkError(
                    f"transformers cannot load {folder} ({reason})", "Look at it with `ernie-export inspect`."
                ) from error
        _require_all(loaded, folder)
        return cls(model)

    def run(self, ids: Array, attention_mask: Array | None = None) -> ReferenceOutput:
        """ids [B,S] int64; attention_mask [B,S], 0 where a row is padded on the right → every position."""
        import torch

        mask = None if attention_mask is None else torch.from_numpy(np.asarray(attention_mask, np.int64))
        with torch.inference_mode():
            output = self._model(
                torch.from_numpy(np.asarray(ids, np.int64)), attention_mask=mask, use_cache=False
            )
        shape = np.shape(ids)
        seen = {
            layer: tuple(part.reshape(*shape, -1) for part in parts) for layer, parts in self._seen.items()
        }
        return ReferenceOutput(
            logits=output.logits.numpy(),
            indices={layer: parts[0] for layer, parts in seen.items()},
            scores={layer: parts[1] for layer, parts in seen.items()},
            choice={layer: parts[2] for layer, parts in seen.items()},
        )

    def states(self, ids: Array) -> dict[str, Array]:
        """ids [S] int64 → what every operator computed, under the names of the exported graph, [S, …]."""
        from ernie_export.reference.states import states

        return states(self._model, ids)

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        """The `tokens` likeliest tokens behind `ids`, one after the other; end tokens do not end it."""
        import torch

        chosen: list[int] = []
        fed, cache = torch.tensor([list(ids)]), None
        with torch.inference_mode():
            while len(chosen) < tokens:
                output = self._model(fed, use_cache=True, **{self._cache: cache})
                cache = getattr(output, self._cache)
                chosen.append(int(output.logits[0, -1].argmax()))
                fed = torch.tensor([chosen[-1:]])
        return chosen

    def _observer(self, layer: int) -> Any:
        def observe(router: Any, _: Any, output: tuple[torch.Tensor, ...]) -> None:
            self._seen[layer] = routing(router, output)

        return observe


def _require_all(loaded: dict[str, Any], folder: Path) -> None:
    """transformers fills what it did not find with random numbers and goes on; that is no reference."""
    for problem in ("missing", "unexpected", "mismatched"):
        names = sorted(key if isinstance(key, str) else key[0] for key in loaded[f"{problem}_keys"])
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WorkError(
                f"transformers finds {problem} weights in {folder}: {names[0]}{more}",
                "Look at it with `ernie-export inspect`.",
            )
