"""What is right, however large: transformers' own ERNIE-4.5 in fp32, one decoder layer in memory at a time.

The model is built on the meta device, where weights have shapes alone.  A layer is filled from the
mapped checkpoint when it is its turn, and runs as the only layer of transformers' own model, so mask,
positions and rotation are transformers' own too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.layout import EMBEDDING, HEAD, part_of, published_name, tensor_shapes
from ernie_export.errors import WorkError
from ernie_export.plan.machine import memory
from ernie_export.readable import size
from ernie_export.reference.linear_inputs import Inputs, watched_inputs
from ernie_export.reference.quiet import quiet
from ernie_export.reference.states import States, Watch, routing
from ernie_export.reference.threads import SMALL, run_on_one_thread

if TYPE_CHECKING:
    from torch import nn

Array = np.ndarray[Any, Any]
AT_ONCE = 4096
"""Tokens that run at once, in whole windows: enough that an expert's weights are read for many tokens."""
FP32 = 4


@dataclass
class Routing:
    """The choices of one router: W windows of S tokens, k experts a token out of E."""

    indices: Array
    """[W,S,k] int64: the chosen experts."""
    scores: Array
    """[W,S,k] float32: their normalised weights."""
    choice: Array
    """[W,S,E] float32: probability + correction bias, by which they were chosen."""


@dataclass
class LayerOutput:
    hidden: Array
    """[W,S,H] float32."""
    routing: Routing | None
    """None of a dense layer."""


class LayeredReference:
    """transformers' model of an open checkpoint, of which nothing is in memory until it is asked for."""

    def __init__(self, checkpoint: Checkpoint):
        """WorkError: transformers cannot build a model of this config."""
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self._model, self._norm = _skeleton(checkpoint)
        self._layers = list(self._model.model.layers)
        self.num_layers = len(self._layers)
        self.moe_layers: tuple[int, ...] = tuple(
            number for number, layer in enumerate(self._layers) if hasattr(layer.mlp, "experts")
        )
        self.vocab_size: int = self._model.config.vocab_size
        if sum(parameter.numel() for parameter in self._model.parameters()) < SMALL:
            run_on_one_thread(self._model.model)

    def embed(self, ids: Array) -> Array:
        """ids [W,S] int64 → hidden [W,S,H] float32: what enters the first layer."""
        return self.checkpoint.array(EMBEDDING)[ids].astype(np.float32)

    @contextmanager
    def layer(self, number: int) -> Iterator[ReferenceLayer]:
        """A decoder layer with its weights in memory, let go at the end; one at a time.

        Raises:
            WorkError: it does not fit into the memory that is free, or transformers asks for other weights
                than the checkpoint holds.
        """
        module = self._layers[number]
        self._require_memory(module, f"layer {number}")
        with _filled(module):
            layer = ReferenceLayer(self, number, module)
            try:
                yield layer
            finally:
                layer.weights.clear()  # a view that outlives the layer would keep all of it

    @contextmanager
    def head(self) -> Iterator[ReferenceHead]:
        """The final norm and the head, as `layer`."""
        module = self._model.lm_head
        self._require_memory(module, "the head")
        with _filled(module), _filled(self._norm):
            head = ReferenceHead(self, self._norm, module)
            try:
                yield head
            finally:
                head.weights.clear()

    def layer_bytes(self, number: int) -> int:
        """What the weights of a layer take."""
        return _bytes(self._layers[number])

    @property
    def largest_bytes(self) -> int:
        """What the weights of the largest layer take, or those of the head."""
        return max(map(_bytes, [*self._layers, self._model.lm_head]))

    def run_layer(self, module: nn.Module, hidden: Array) -> Array:
        """hidden [W,S,H] through one layer of transformers' model, [W,S,H]."""
        import torch

        inner = self._model.model
        inner.layers = torch.nn.ModuleList([module])
        with torch.inference_mode():
            output = inner(inputs_embeds=torch.from_numpy(np.ascontiguousarray(hidden)), use_cache=False)
        result: Array = output.last_hidden_state.numpy()
        return result

    def _require_memory(self, module: nn.Module, what: str) -> None:
        needed, free = _bytes(module), memory()[1]
        if needed > free:
            raise WorkError(
                f"{what} of the reference takes {size(needed)} in fp32, and this machine has {size(free)} free",
                "Close other programs, or validate on a machine with more memory.",
            )


class ReferenceLayer:
    """One decoder layer with its weights."""

    def __init__(self, reference: LayeredReference, number: int, module: nn.Module):
        self.number = number
        self._reference, self._module = reference, module
        self.weights: dict[str, Array] = _views(module, f"model.layers.{number}.")
        """Published name → float32, a view of what the layer runs with: write into it to try another weight.
        Experts stand one by one, `model.layers.3.mlp.experts.7.gate_proj.weight`."""
        asked = tensor_shapes(reference.config)
        names = {name for name in asked if name.startswith(f"model.layers.{number}.")}
        if other := sorted(names ^ set(self.weights)):
            raise WorkError(
                f"transformers and the checkpoint do not have the same weights: {other[0]}",
                "Look at the checkpoint with `ernie-export inspect`.",
            )
        for name in self.weights:
            self.restore(name)

    def restore(self, name: str) -> None:
        """Give a weight the checkpoint's values."""
        self.weights[name][...] = _stored(self._reference.checkpoint, name)

    def run(self, hidden: Array, inputs: Inputs | None = None, out: Array | None = None) -> LayerOutput:
        """hidden [W,S,H] float32 → the hidden state behind the layer and its routing.

        Args:
            inputs: called with the published names of the weights that read it, and the input
                [tokens,K] float32 of each linear and of each expert hit (the tokens routed to it, in any order).
                Called for every piece of the windows; the array is valid during the call alone.
            out: where to put the hidden state; `hidden` itself may be overwritten.
        """
        windows = max(1, AT_ONCE // hidden.shape[1])
        out = np.empty(hidden.shape, np.float32) if out is None else out
        routed: list[tuple[Array, Array, Array]] = []
        with self._routed(routed), watched_inputs(self.weights, inputs):
            for at in range(0, len(hidden), windows):
                piece = slice(at, at + windows)
                out[piece] = self._reference.run_layer(self._module, hidden[piece])
        return LayerOutput(out, _gathered(routed, hidden.shape[:2]))

    def states(self, hidden: Array) -> States:
        """hidden [S,H] of one window → what every operator of the layer computed, [S, …], under the names
        of the exported graph, in the order in which it was computed."""
        found: States = {}
        watch = Watch(found)
        watch.layer(self._module, self.number)
        try:
            self._reference.run_layer(self._module, hidden[None])
        finally:
            watch.end()
        return found

    @contextmanager
    def _routed(self, found: list[tuple[Array, Array, Array]]) -> Iterator[None]:
        mlp: Any = self._module.mlp
        if not hasattr(mlp, "experts"):
            yield
            return
        hook = mlp.gate.register_forward_hook(lambda router, _, out: found.append(routing(router, out)))
        try:
            yield
        finally:
            hook.remove()


class ReferenceHead:
    """The final norm and the head with their weights."""

    def __init__(self, reference: LayeredReference, norm: nn.Module, linear: nn.Module):
        self._norm, self._linear = norm, linear
        stored = reference.checkpoint
        name = EMBEDDING if reference.config.tie_word_embeddings else HEAD
        self.weights: dict[str, Array] = {
            name: _views(linear, "")["weight"],
            "model.norm.weight": _views(norm, "")["weight"],
        }
        """Published name → float32, as those of a layer."""
        for name, view in self.weights.items():
            view[...] = stored.array(name)

    def norm(self, hidden: Array) -> Array:
        """hidden [T,H] → [T,H]: what the head reads."""
        return self._run(self._norm, hidden)

    def logits(self, hidden: Array) -> Array:
        """hidden [T,H] as it left the last layer → logits [T,V] float32; give it a few hundred tokens at once."""
        return self._run(self._linear, self.norm(hidden))

    def _run(self, module: nn.Module, x: Array) -> Array:
        import torch

        with torch.inference_mode():
            result: Array = module(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return result


def _skeleton(checkpoint: Checkpoint) -> tuple[Any, nn.Module]:
    """transformers' model on the meta device, and its final norm, which is taken out of it."""
    import torch
    import transformers

    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(checkpoint.path, local_files_only=True)
            with torch.device("meta"):
                model = getattr(transformers, checkpoint.config.architecture)(config).eval()
        except Exception as error:  # transformers raises what it likes
            reason = str(error).strip().partition("\n")[0]
            raise WorkError(
                f"transformers cannot build the model of {checkpoint.path} ({reason})",
                "Look at it with `ernie-export inspect`.",
            ) from error
        model.set_attn_implementation("sdpa")
        if checkpoint.config.moe_num_experts:
            model.set_experts_implementation("eager")
        inner = model.model
        inner.rotary_emb = type(inner.rotary_emb)(config=config)
    norm, inner.norm = inner.norm, torch.nn.Identity()
    return model, norm


@contextmanager
def _filled(module: nn.Module) -> Iterator[None]:
    """Real fp32 memory behind every parameter, of any content; none again afterwards."""
    import torch

    if made_up := [name for name, _ in module.named_buffers()]:
        raise WorkError(
            f"transformers' layer has a buffer that no checkpoint gives: {made_up[0]}",
            "Install the version of transformers in constraints.txt.",
        )
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    try:
        module.load_state_dict({name: torch.empty(shape) for name, shape in shapes.items()}, assign=True)
        yield
    finally:
        module.to("meta")


def _views(module: nn.Module, prefix: str) -> dict[str, Array]:
    """Published name → a view of each parameter, those of stacked experts one by one."""
    views: dict[str, Array] = {}
    for name, parameter in module.named_parameters(prefix.rstrip(".")):
        array = parameter.detach().numpy()
        experts = name.rpartition(".")[0]
        if name.endswith(".experts.gate_up_proj"):
            inner = array.shape[1] // 2
            for expert, both in enumerate(array):
                views[f"{experts}.{expert}.gate_proj.weight"] = both[:inner]
                views[f"{experts}.{expert}.up_proj.weight"] = both[inner:]
        elif name.endswith(".experts.down_proj"):
            views |= {f"{experts}.{expert}.down_proj.weight": down for expert, down in enumerate(array)}
        else:
            views[published_name(name)] = array
    return views


def _stored(checkpoint: Checkpoint, name: str) -> Array:
    """A tensor under its published name, also where the checkpoint holds its experts stacked."""
    if name in checkpoint.tensors or part_of(name) != "experts":
        return checkpoint.array(name)
    _, _, layer, _, _, expert, kind, _ = name.split(".")
    found: Array = getattr(checkpoint.expert(int(layer), int(expert)), kind.removesuffix("_proj"))
    return found


def _gathered(routed: list[tuple[Array, Array, Array]], shape: tuple[int, ...]) -> Routing | None:
    if not routed:
        return None
    return Routing(*(np.concatenate(parts).reshape(*shape, -1) for parts in zip(*routed, strict=True)))


def _bytes(module: nn.Module) -> int:
    return FP32 * sum(parameter.numel() for parameter in module.parameters())
