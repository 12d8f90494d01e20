"""One layer at a time is transformers' whole model: values, routing, operators, and what linears read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.errors import WorkError
from ernie_export.reference import layers
from ernie_export.reference.layers import LayeredReference, LayerOutput
from ernie_export.reference.transformers_model import Reference

IDS = np.random.default_rng(1).integers(0, 96, (3, 11))


def stepped(reference: LayeredReference, ids: np.ndarray) -> tuple[list[LayerOutput], np.ndarray]:
    """What every layer gives, and the logits [W,S,V]."""
    hidden, outputs = reference.embed(ids), []
    for number in range(reference.num_layers):
        with reference.layer(number) as layer:
            outputs.append(layer.run(hidden))
        hidden = outputs[-1].hidden
    with reference.head() as head:
        logits = head.logits(hidden.reshape(-1, hidden.shape[-1]))
    return outputs, logits.reshape(*ids.shape, -1)


@pytest.fixture(params=["nano", "moe", "dense", "untied", "stacked"])
def folder(
    request: pytest.FixtureRequest, nano: Path, moe: tuple[Any, Path], dense: tuple[Any, Path], tmp_path: Path
) -> Path:
    if request.param in ("nano", "moe", "dense"):
        return {"nano": nano, "moe": moe[1], "dense": dense[1]}[request.param]
    copy = shutil.copytree(moe[1], tmp_path / request.param)
    tensors = load_file(copy / "model.safetensors")
    if request.param == "untied":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
        tensors["lm_head.weight"] = torch.randn(96, 32, generator=torch.Generator().manual_seed(3)) / 8
    else:
        for layer in (1, 2):
            prefix = f"model.layers.{layer}.mlp.experts"
            parts = {
                kind: [tensors.pop(f"{prefix}.{expert}.{kind}_proj.weight") for expert in range(12)]
                for kind in ("gate", "up", "down")
            }
            both = zip(parts["gate"], parts["up"], strict=True)
            tensors[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in both])
            tensors[f"{prefix}.down_proj"] = torch.stack(parts["down"])
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_layer_by_layer_is_the_whole_model(folder: Path) -> None:
    whole, reference = Reference.open(folder), LayeredReference(Checkpoint.open(folder))
    assert (reference.moe_layers, reference.vocab_size) == (whole.moe_layers, whole.vocab_size)
    want = whole.run(IDS)
    outputs, logits = stepped(reference, IDS)
    scale = np.abs(want.logits).max()
    np.testing.assert_allclose(logits / scale, want.logits / scale, atol=1e-5)
    assert [number for number, output in enumerate(outputs) if output.routing] == list(whole.moe_layers)
    for number in whole.moe_layers:
        routing = outputs[number].routing
        assert routing is not None
        np.testing.assert_array_equal(routing.indices, want.indices[number])
        np.testing.assert_allclose(routing.scores, want.scores[number], atol=1e-5)
        np.testing.assert_allclose(routing.choice, want.choice[number], atol=1e-5)


def test_every_operator_is_that_of_the_whole_model(folder: Path) -> None:
    want = Reference.open(folder).states(IDS[0])
    reference = LayeredReference(Checkpoint.open(folder))
    hidden = reference.embed(IDS[:1])[0]
    found = {"embedding.output": hidden}
    for number in range(reference.num_layers):
        with reference.layer(number) as layer:
            found |= layer.states(hidden)
        hidden = found[f"layers.{number}.output"]
    with reference.head() as head:
        found |= {"norm.output": head.norm(hidden), "logits": head.logits(hidden)}
    assert list(found) == list(want)
    for name, values in want.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5 * max(1, np.abs(values).max()))


def test_windows_that_run_in_pieces_are_as_at_once(
    moe: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = LayeredReference(Checkpoint.open(moe[1]))
    at_once, logits = stepped(reference, IDS)
    monkeypatch.setattr(layers, "AT_ONCE", 2 * IDS.shape[1])
    in_pieces, again = stepped(reference, IDS)
    np.testing.assert_allclose(again, logits, atol=1e-6)
    assert at_once[1].routing is not None and in_pieces[1].routing is not None
    np.testing.assert_array_equal(in_pieces[1].routing.indices, at_once[1].routing.indices)


def test_the_state_may_be_overwritten(moe: tuple[Any, Path]) -> None:
    reference = LayeredReference(Checkpoint.open(moe[1]))
    hidden = reference.embed(IDS)
    with reference.layer(1) as layer:
        want = layer.run(hidden).hidden
        assert layer.run(hidden, out=hidden).hidden is hidden
    np.testing.assert_array_equal(hidden, want)


@pytest.fixture
def reference(moe: tuple[Any, Path]) -> LayeredReference:
    return LayeredReference(Checkpoint.open(moe[1]))


def test_weights_are_in_memory_only_while_their_layer_is_open(reference: LayeredReference) -> None:
    def real() -> set[str]:
        return {
            name
            for number, layer in enumerate(reference._layers)
            for name, parameter in layer.named_parameters(f"{number}")
            if not parameter.is_meta
        }

    assert real() == set()
    with reference.layer(1):
        assert {name[0] for name in real()} == {"1"}
    assert real() == set()
    with pytest.raises(ZeroDivisionError), reference.layer(2):
        raise ZeroDivisionError
    assert real() == set()


def test_another_weight_can_be_tried_and_the_checkpoints_restored(reference: LayeredReference) -> None:
    hidden = reference.embed(IDS)
    name = "model.layers.1.mlp.experts.7.down_proj.weight"
    with reference.layer(1) as layer:
        before = layer.run(hidden)
        assert before.routing is not None
        layer.weights[name][:] += 1
        after = layer.run(hidden).hidden
        hit = (before.routing.indices == 7).any(-1)
        assert (np.abs(after - before.hidden).max(-1) > 1e-3).tolist() == hit.tolist()
        assert 0 < hit.mean() < 1
        layer.restore(name)
        np.testing.assert_array_equal(layer.run(hidden).hidden, before.hidden)


def test_the_inputs_of_every_linear_are_told(reference: LayeredReference, moe: tuple[Any, Path]) -> None:
    """Against hooks on the saved model; those of experts are what its router sent them."""
    model, _ = moe
    want: dict[str, np.ndarray] = {}

    def note(name: str) -> Any:
        return lambda _, args: want.update({name: args[0].reshape(-1, args[0].shape[-1]).numpy()})

    block = model.model.layers[2]
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.shared_experts.gate_proj",
             "mlp.shared_experts.down_proj", "mlp.experts")  # fmt: skip
    hooks = [block.get_submodule(kind).register_forward_pre_hook(note(kind)) for kind in kinds]
    with torch.inference_mode():
        model(torch.from_numpy(IDS), use_cache=False)
    for hook in hooks:
        hook.remove()

    told: dict[str, list[np.ndarray]] = {}
    readers: set[str] = set()

    def inputs(names: tuple[str, ...], x: np.ndarray) -> None:
        told.setdefault(names[0].removeprefix("model.layers.2.").removesuffix(".weight"), []).append(x.copy())
        readers.update(names)

    hidden = reference.embed(IDS)
    for number in range(3):
        with reference.layer(number) as layer:
            output = layer.run(hidden, inputs if number == 2 else None)
            linears = {name for name in layer.weights if "_proj." in name}
        hidden = output.hidden
    assert output.routing is not None
    chosen = output.routing.indices.reshape(-1, 3)
    hit = set(np.unique(chosen).tolist())
    assert readers == {name for name in linears if ".experts." not in name or int(name.split(".")[5]) in hit}
    for kind in kinds[:-1]:
        (x,) = told[kind]
        np.testing.assert_allclose(x, want[kind], atol=1e-5)
    experts = block.mlp.experts
    for expert in hit:
        (x,), (inner,) = (told[f"mlp.experts.{expert}.{kind}_proj"] for kind in ("gate", "down"))
        routed = want["mlp.experts"][np.argwhere(expert == chosen.T)[:, 1]]  # first choices first
        np.testing.assert_allclose(x, routed, atol=1e-5)
        gate, up = (torch.from_numpy(routed) @ experts.gate_up_proj[expert].detach().T).chunk(2, -1)
        np.testing.assert_allclose(inner, (torch.nn.functional.silu(gate) * up).numpy(), atol=1e-5)


@pytest.mark.parametrize("open_it", [lambda r: r.layer(1), lambda r: r.head()])
def test_too_little_memory_is_said_before_the_weights_are_read(
    reference: LayeredReference, monkeypatch: pytest.MonkeyPatch, open_it: Any
) -> None:
    monkeypatch.setattr(layers, "memory", lambda: (1 << 30, 1000))
    with (
        pytest.raises(WorkError, match=r"of the reference takes .* in fp32, and this machine has 1 kB free"),
        open_it(reference),
    ):
        pass


def test_the_largest_part_is_known_before(reference: LayeredReference) -> None:
    assert reference.layer_bytes(0) < reference.layer_bytes(1) == reference.largest_bytes
    with reference.layer(1) as layer:
        assert sum(view.nbytes for view in layer.weights.values()) == reference.layer_bytes(1)


def test_weights_that_transformers_would_make_up_are_refused(moe: tuple[Any, Path], tmp_path: Path) -> None:
    """transformers assumes shared experts where the config is silent."""
    copy = shutil.copytree(moe[1], tmp_path / "silent")
    config = json.loads((copy / "config.json").read_text())
    del config["moe_num_shared_experts"]
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "shared" not in name},
        copy / "model.safetensors",
        metadata={"format": "pt"},
    )
    with (
        pytest.raises(
            WorkError, match=r"do not have the same weights: model\.layers\.1\.mlp\.shared_experts"
        ),
        LayeredReference(Checkpoint.open(copy)).layer(1),
    ):
        pass


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_small_model_runs_on_one_thread(reference: LayeredReference) -> None:
    seen: list[int] = []
    reference._layers[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    with reference.layer(0) as layer:
        layer.run(reference.embed(IDS))
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_nothing_is_printed(moe: tuple[Any, Path], capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    stepped(LayeredReference(Checkpoint.open(moe[1])), IDS)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
