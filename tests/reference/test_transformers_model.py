from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ernie_export.errors import UserError, WorkError
from ernie_export.reference.transformers_model import Reference

IDS = np.random.default_rng(0).integers(0, 96, (2, 9))
Tensors = dict[str, torch.Tensor]


def logits_of(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(ids), use_cache=False).logits.numpy()


def damaged(folder: Path, into: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of the checkpoint whose tensors are changed."""
    shutil.copytree(folder, into)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


def test_logits_are_those_of_the_saved_model(moe: tuple[Any, Path]) -> None:
    model, folder = moe
    np.testing.assert_array_equal(Reference.open(folder).run(IDS).logits, logits_of(model, IDS))


def test_dense_models_have_no_routing(dense: tuple[Any, Path]) -> None:
    model, folder = dense
    reference = Reference.open(folder)
    output = reference.run(IDS)
    np.testing.assert_array_equal(output.logits, logits_of(model, IDS))
    assert reference.moe_layers == ()
    assert output.indices == output.scores == output.choice == {}


def test_routing_is_what_the_router_did(moe: tuple[Any, Path]) -> None:
    """Recomputed in numpy from what entered each router."""
    model, folder = moe
    entered: dict[int, np.ndarray] = {}
    hooks = [
        layer.mlp.gate.register_forward_hook(
            lambda _, args, out, index=index: entered.update({index: args[0].numpy()})
        )
        for index, layer in enumerate(model.model.layers)
        if index > 0
    ]
    logits_of(model, IDS)
    for hook in hooks:
        hook.remove()
    output = Reference.open(folder).run(IDS)
    assert sorted(output.choice) == [1, 2]
    for layer, hidden in entered.items():
        gate = model.model.layers[layer].mlp.gate
        raw = hidden.astype(np.float64) @ gate.weight.detach().double().numpy().T
        probability = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
        choice = probability + gate.moe_statics.e_score_correction_bias.double().numpy()
        np.testing.assert_allclose(output.choice[layer].reshape(-1, 12), choice, atol=1e-6)
        indices = output.indices[layer].reshape(-1, 3)
        np.testing.assert_array_equal(indices, np.argsort(-choice)[:, :3])
        chosen = np.take_along_axis(probability, indices, axis=-1)
        np.testing.assert_allclose(
            output.scores[layer].reshape(-1, 3), chosen / chosen.sum(-1, keepdims=True), atol=1e-6
        )
        assert (np.sort(indices) != np.sort(np.argsort(-probability)[:, :3])).any(), "the bias moves nothing"


def test_rows_padded_on_the_right_are_as_if_alone(moe: tuple[Any, Path]) -> None:
    reference = Reference.open(moe[1])
    mask = np.array([[1] * 9, [1] * 5 + [0] * 4])
    padded = reference.run(np.where(mask, IDS, 0), mask)
    alone = reference.run(IDS[1:, :5])
    np.testing.assert_allclose(padded.logits[1, :5], alone.logits[0], atol=1e-5)
    np.testing.assert_array_equal(padded.indices[2][1, :5], alone.indices[2][0])


def test_greedy_equals_running_everything_again_for_each_token(moe: tuple[Any, Path]) -> None:
    reference = Reference.open(moe[1])
    ids = IDS[0].tolist()
    for _ in range(12):
        ids.append(int(reference.run(np.array([ids])).logits[0, -1].argmax()))
    assert reference.greedy(IDS[0].tolist(), 12) == ids[9:]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_small_model_runs_on_one_thread_and_leaves_the_others_to_others(moe: tuple[Any, Path]) -> None:
    reference = Reference.open(moe[1])
    seen: list[int] = []
    reference._model.lm_head.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    reference.greedy(IDS[0].tolist(), 2)
    with pytest.raises(IndexError):
        reference.run(np.array([[96]]))  # outside the vocabulary: the run breaks off
    assert seen == [1, 1]
    assert torch.get_num_threads() == 2


def test_half_precision_checkpoints_run_in_fp32(moe: tuple[Any, Path], tmp_path: Path) -> None:
    halved = damaged(moe[1], tmp_path / "bf16", lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    widened = damaged(
        moe[1], tmp_path / "fp32", lambda t: t.update({k: v.bfloat16().float() for k, v in t.items()})
    )
    np.testing.assert_array_equal(
        Reference.open(halved).run(IDS).logits, Reference.open(widened).run(IDS).logits
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.layers.1.input_layernorm.weight"), "missing weights"),
        (lambda t: t.pop("model.layers.2.mlp.moe_statics.e_score_correction_bias"), "missing weights"),
        (lambda t: t.update({"model.layers.3.input_layernorm.weight": torch.ones(32)}), "unexpected weights"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), "mismatched weights"),
        (lambda t: t.pop("model.layers.1.mlp.experts.3.up_proj.weight"), "cannot load"),
        (
            lambda t: [
                t.pop(f"model.layers.1.mlp.experts.11.{part}_proj.weight") for part in ("gate", "up", "down")
            ],
            "weights in",
        ),
    ],
)
def test_weights_that_would_be_made_up_are_refused(
    moe: tuple[Any, Path], tmp_path: Path, change: Callable[[Tensors], object], says: str
) -> None:
    with pytest.raises(WorkError, match=says):
        Reference.open(damaged(moe[1], tmp_path / "damaged", change))


def test_prediction_layers_for_training_are_ignored(moe: tuple[Any, Path], tmp_path: Path) -> None:
    folder = damaged(
        moe[1], tmp_path / "mtp", lambda t: t.update({"model.mtp_block.0.norm.weight": torch.ones(3)})
    )
    assert Reference.open(folder).vocab_size == 96


def test_a_cut_file_is_one_clear_error(moe: tuple[Any, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(moe[1], tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WorkError, match="transformers cannot load"):
        Reference.open(folder)


def test_pickled_weights_are_never_read(moe: tuple[Any, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(moe[1], tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WorkError, match="transformers cannot load"):
        Reference.open(folder)


def test_a_folder_without_config_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        Reference.open(tmp_path)


def test_nothing_is_printed(moe: tuple[Any, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    broken = damaged(moe[1], tmp_path / "broken", lambda t: t.pop("model.norm.weight"))
    capfd.readouterr()
    Reference.open(moe[1]).greedy([1, 2, 3], 2)
    with pytest.raises(WorkError):
        Reference.open(broken)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
