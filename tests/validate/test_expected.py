"""What operators must give: transformers' own modules, given the stored weights, say the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.graph.weights import form_of, read_layout
from ernie_export.quantize.formats import dequantize
from ernie_export.recipe import Recipe
from ernie_export.reference.transformers_model import Reference
from ernie_export.validate.expected import _silu, expected
from ernie_export.validate.operators import largest_activation, relative_error
from ernie_export.validate.weights import stored_matrices
from tests.validate.planting import assembled

IDS = np.arange(5, 205, 5)


def measured(folder: Path, reference: Reference) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    want = reference.states(IDS % reference.vocab_size)
    parts = Recipe.read(folder / "recipe.toml").parts
    return want, *expected(folder, "model.onnx", parts, IDS % reference.vocab_size, want)


def differing(want: dict[str, Any], got: dict[str, Any], limit: float = 1e-5) -> list[str]:
    assert list(got) == list(want)
    return [name for name in want if not relative_error(want[name], got[name]) <= limit]


def test_with_the_checkpoints_own_weights_it_is_what_transformers_gives(
    bundle: Callable[[str], Path], nano: Path
) -> None:
    want, got, _ = measured(bundle("fp32"), Reference.open(nano))
    assert differing(want, got) == []
    assert any(got[name] is not want[name] for name in want)


def test_an_untied_head_is_computed_with_its_own_weights(checkpoint: Path, tmp_path: Path) -> None:
    folder = assembled(checkpoint, Recipe.find("fp32"), tmp_path / "partial")
    want, got, _ = measured(folder, Reference.open(checkpoint))
    assert differing(want, got) == []
    assert got["logits"] is not want["logits"]


def test_with_other_weights_it_is_what_transformers_modules_give_with_those(
    bundle: Callable[[str], Path], nano: Path
) -> None:
    import torch

    want, got, _ = measured(bundle("int4"), Reference.open(nano))
    model = with_stored_weights(bundle("int4"), Reference.open(nano)._model)

    def run(module: Any, *values: Any) -> Any:
        with torch.inference_mode():
            return module(*(torch.from_numpy(value) for value in values)).numpy()

    layer, here = model.model.layers[3], "layers.3"
    normed = want[f"{here}.post_attention_norm.output"]
    shared = [f"{here}.shared.{kind}.output" for kind in ("gate", "up")]
    inner = run(torch.nn.functional.silu, want[shared[0]]) * want[shared[1]]
    rows, scores = (want[f"{here}.routing.{what}"] for what in ("indices", "scores"))
    by_transformers = {
        "embedding.output": run(model.model.embed_tokens, IDS),
        f"{here}.attention.q.output": run(layer.self_attn.q_proj, want[f"{here}.input_norm.output"]),
        f"{here}.attention.o.output": run(layer.self_attn.o_proj, want[f"{here}.attention.core.output"]),
        f"{here}.experts.output": run(layer.mlp.experts, normed, rows, scores),
        shared[0]: run(layer.mlp.shared_experts.gate_proj, normed),
        f"{here}.shared.down.output": run(layer.mlp.shared_experts.down_proj, inner),
        "logits": run(model.lm_head, want["norm.output"]),
    }
    assert differing(by_transformers, {name: got[name] for name in by_transformers}) == []
    # The formats show: what is rounded is not what transformers gives with the checkpoint's weights.
    assert {*differing(want, got, 1e-3)} > {*by_transformers} - {"embedding.output"}
    exact = [name for name in want if "norm." in name or "routing" in name or "core" in name]
    assert all(got[name] is want[name] for name in exact)


def with_stored_weights(folder: Path, model: Any) -> Any:
    """transformers' model, in each matrix of which is what the bundle's stands for."""
    import torch

    parts = Recipe.read(folder / "recipe.toml").parts
    named = dict(model.named_parameters())
    for file in read_layout(folder / "model.onnx"):
        for stored in file.tensors:
            form = form_of(stored.name, parts)
            if stored.name.endswith("scales") or form is None:
                continue
            packed = stored_matrices(folder, file, stored, parts)
            values = np.stack([dequantize(matrix, form) for matrix in packed])
            if stored.name.endswith("gate_up"):  # transformers has the rows of gate first
                values = np.concatenate([values[:, 0::2], values[:, 1::2]], axis=1)
            parameter = named[published(stored.name)]
            parameter.data = torch.from_numpy(values).reshape(parameter.shape)
    return model


def published(name: str) -> str:
    """The name of a stored matrix in transformers' model."""
    if name == "embedding.weight":
        return "model.embed_tokens.weight"
    for ours, theirs in ((".attention.", ".self_attn."), (".shared.", ".mlp.shared_experts."),
                         (".experts.", ".mlp.experts.")):  # fmt: skip
        name = name.replace(ours, theirs)
    if not name.endswith(".weight"):
        return f"model.{name}_proj"
    return f"model.{name.removesuffix('.weight')}_proj.weight"


def test_inner_values_reach_as_far_as_transformers_own(bundle: Callable[[str], Path], nano: Path) -> None:
    import torch

    reference = Reference.open(nano)
    seen: dict[str, float] = {}

    def watch(name: str) -> Any:
        def note(_module: Any, inputs: Any) -> None:
            seen[name] = float(inputs[0].abs().max())

        return note

    for number, layer in enumerate(reference._model.model.layers):
        shared = layer.mlp.shared_experts if number else layer.mlp
        name = f"layers.{number}.{'shared' if number else 'mlp'}"
        shared.down_proj.register_forward_pre_hook(watch(name))
    want, _, inner = measured(bundle("fp32"), reference)

    checkpoint = Checkpoint.open(nano)
    for number in reference.moe_layers:
        normed = torch.from_numpy(want[f"layers.{number}.post_attention_norm.output"])
        indices = want[f"layers.{number}.routing.indices"]
        for expert in np.unique(indices):
            tokens = torch.from_numpy((indices == expert).any(axis=1))
            gate, up, _ = (torch.from_numpy(w.astype(np.float32)) for w in checkpoint.expert(number, expert))
            products = torch.nn.functional.silu(normed[tokens] @ gate.T) * (normed[tokens] @ up.T)
            name = f"layers.{number}.experts"
            seen[name] = max(seen.get(name, 0.0), float(products.abs().max()))
    assert inner == pytest.approx(seen, rel=1e-4)


def test_the_largest_activation_is_named_where_it_first_goes_too_far() -> None:
    values = {
        "layers.1.experts.output": np.array([2.0, -3.0]),
        "layers.1.shared.down.output": np.array([1.0]),
        "layers.1.output": np.array([90.0]),
        "layers.1.routing.indices": np.array([1000]),
    }
    assert largest_activation(values, {"layers.1.experts": 5.0}, 100.0) == ("layers.1.output", 90.0)
    assert largest_activation(values, {"layers.1.experts": 50.0}, 40.0) == ("layers.1.experts.inner", 90.0)
    assert largest_activation(values, {"layers.1.shared": 500.0}, 80.0) == ("layers.1.shared.inner", 500.0)


def test_silu_of_what_is_far_below_zero_is_zero_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _silu(np.array([-1e4, 0, 20], np.float32)).tolist() == [0, 0, 20]
