"""One layer of ernie-nano: what its linears read is what transformers gives them, and rounding minds it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.calibrate.hessians import Hessians
from ernie_export.calibrate.layer import Rounding, observed
from ernie_export.calibrate.text import calibration_windows
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.errors import UserError
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.graph.weights import matrices
from ernie_export.quantize.formats import dequantize, quantize
from ernie_export.quantize.gptq import damped, gptq
from ernie_export.recipe import Calibration, PartFormat
from ernie_export.reference.layers import LayeredReference
from ernie_export.reference.transformers_model import Reference
from ernie_export.validate.sample import Sample, text_windows

Array = np.ndarray[Any, Any]
INT4 = PartFormat(format="int4", block_size=128)
SETTINGS = Calibration(method="gptq", tokens=1024, window=256, least_tokens=128)
LAYER = 2


@pytest.fixture(scope="module")
def checkpoint(nano: Path) -> Checkpoint:
    return Checkpoint.open(nano)


@pytest.fixture(scope="module")
def ids(nano: Path) -> Array:
    return calibration_windows(None, SETTINGS, TextTokenizer.read(nano).encode).ids


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> LayeredReference:
    return LayeredReference(checkpoint)


@pytest.fixture(scope="module")
def hidden(reference: LayeredReference, ids: Array) -> Array:
    """What the layer reads."""
    state = reference.embed(ids)
    for number in range(LAYER):
        observed(reference, number, state)
    return state


@pytest.fixture(scope="module")
def hessians(reference: LayeredReference, hidden: Array) -> Hessians:
    return observed(reference, LAYER, hidden.copy())


def test_sums_and_counts_are_of_what_transformers_reads(nano: Path, ids: Array, hessians: Hessians) -> None:
    """Of the whole model, run at once."""
    whole = Reference.open(nano)
    states = [whole.states(window) for window in ids]
    for name, value in [
        ("self_attn.v_proj", "input_norm.output"),
        ("self_attn.o_proj", "attention.core.output"),
        ("mlp.shared_experts.up_proj", "post_attention_norm.output"),
    ]:
        read = np.concatenate([state[f"layers.{LAYER}.{value}"] for state in states]).reshape(ids.size, -1)
        weight = f"model.layers.{LAYER}.{name}.weight"
        assert hessians.tokens(weight) == ids.size
        np.testing.assert_allclose(
            hessians.of(weight), read.T @ read, atol=1e-4 * np.square(read).sum(0).max()
        )
    chosen = whole.run(ids).indices[LAYER]
    normed = np.concatenate([state[f"layers.{LAYER}.post_attention_norm.output"] for state in states])
    for expert in range(16):
        tokens = (chosen == expert).any(axis=-1).reshape(-1)
        weight = f"model.layers.{LAYER}.mlp.experts.{expert}.gate_proj.weight"
        assert abs(hessians.tokens(weight) - tokens.sum()) <= 1
        read = normed[tokens]
        np.testing.assert_allclose(
            hessians.of(weight), read.T @ read, atol=0.02 * np.square(read).sum(0).max()
        )


def test_what_leaves_the_last_layer_is_what_the_head_reads(
    nano: Path, ids: Array, reference: LayeredReference
) -> None:
    hidden = reference.embed(ids[:1])
    for number in range(reference.num_layers):
        observed(reference, number, hidden)
    found = observed(reference, reference.num_layers, hidden)
    read = Reference.open(nano).states(ids[0])["norm.output"]
    want = read.T @ read
    np.testing.assert_allclose(found.of("model.embed_tokens.weight"), want, atol=1e-3 * want.max())


def expert_errors(
    checkpoint: Checkpoint, hessians: Hessians, name: str, packed: dict[int, Any]
) -> dict[int, tuple[float, float]]:
    """Expert → e H eᵀ, with the damped H, of what was packed and of rounded to nearest."""
    kind = "down" if name.endswith("down") else "gate"
    found = {}
    for expert, (_, matrix) in enumerate(matrices(name, checkpoint)):
        weight = f"model.layers.{LAYER}.mlp.experts.{expert}.{kind}_proj.weight"
        both = []
        for form in (packed[expert], quantize(matrix, INT4)):
            off = matrix.astype(np.float32) - dequantize(form, INT4)
            both.append(
                float(
                    np.einsum(
                        "nk,kl,nl->",
                        off,
                        damped(hessians.of(weight), hessians.tokens(weight)),
                        off,
                        optimize=True,
                    )
                )
            )
        found[expert] = (both[0], both[1])
    return found


def rounding(
    checkpoint: Checkpoint, hessians: Hessians, name: str, settings: Calibration
) -> tuple[Any, Rounding]:
    made = Rounding(checkpoint, hessians, settings)
    with ThreadPoolExecutor(4) as pool:
        jobs = {
            expert: pool.submit(made.pack, name, expert, matrix, INT4)
            for expert, (_, matrix) in enumerate(matrices(name, checkpoint))
        }
    return {expert: job.result() for expert, job in jobs.items()}, made


@pytest.mark.parametrize("name", [f"layers.{LAYER}.experts.gate_up", f"layers.{LAYER}.experts.down"])
def test_experts_that_were_reached_err_less_and_the_others_are_rounded(
    name: str, checkpoint: Checkpoint, hessians: Hessians
) -> None:
    counts = {
        expert: hessians.tokens(f"model.layers.{LAYER}.mlp.experts.{expert}.down_proj.weight")
        for expert in range(16)
    }
    least = sorted(counts.values())[3] + 1  # so that some are reached less
    settings = SETTINGS.model_copy(update={"least_tokens": least})
    packed, made = rounding(checkpoint, hessians, name, settings)
    missed = {expert: count for expert, count in counts.items() if count < least}
    errors = expert_errors(checkpoint, hessians, name, packed)
    for expert, (mine, near) in errors.items():
        assert mine == near if expert in missed else mine < 0.9 * near, expert
    (tensor,) = made.tensors()
    assert tensor.name == name and tensor.rounded == missed and len(missed) >= 4
    assert tensor.tokens == min(count for count in counts.values() if count >= least)
    kept = [pair for expert, pair in errors.items() if expert not in missed]
    ratio = (sum(mine for mine, _ in kept) / sum(near for _, near in kept)) ** 0.5
    assert tensor.error == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize("kind", ["gate", "down"])
def test_few_tokens_do_no_harm_on_text_that_was_not_seen(
    kind: str, nano: Path, checkpoint: Checkpoint, reference: LayeredReference, hidden: Array
) -> None:
    """64 tokens of each expert, many fewer than its inputs: of what the held-out text gives it the error is less."""
    text = text_windows(Sample(windows=4, window_tokens=256), TextTokenizer.read(nano).encode)
    held_out = reference.embed(text.ids)
    for number in range(LAYER):
        observed(reference, number, held_out)
    seen, unseen = expert_inputs(reference, hidden, kind), expert_inputs(reference, held_out, kind)
    total, total_nearest = 0.0, 0.0
    for name in seen.keys() & unseen.keys():
        x, weight = seen[name][:64], checkpoint.array(name).astype(np.float32)
        made, near = gptq(weight, x.T @ x, len(x), INT4).packed, quantize(weight, INT4)
        mine, nearest = (
            np.square(unseen[name] @ (weight - dequantize(p, INT4)).T).sum() for p in (made, near)
        )
        assert mine < 1.1 * nearest, name
        total, total_nearest = total + mine, total_nearest + nearest
    assert 0 < total < 0.95 * total_nearest


def expert_inputs(reference: LayeredReference, hidden: Array, kind: str) -> dict[str, Array]:
    """Weight of each expert that was hit → what it read, [tokens, K]."""
    found: dict[str, list[Array]] = {}

    def keep(names: tuple[str, ...], inputs: Array) -> None:
        if ".experts." in names[0] and f"{kind}_proj" in names[0]:
            found.setdefault(names[0], []).append(inputs.copy())

    with reference.layer(LAYER) as layer:
        layer.run(hidden, keep)
    return {name: np.concatenate(pieces) for name, pieces in found.items()}


def test_in_any_order_the_same(checkpoint: Checkpoint, hessians: Hessians) -> None:
    name = f"layers.{LAYER}.experts.down"
    one, made = rounding(checkpoint, hessians, name, SETTINGS)
    alone = Rounding(checkpoint, hessians, SETTINGS)
    for expert, (_, matrix) in reversed(list(enumerate(matrices(name, checkpoint)))):
        np.testing.assert_array_equal(alone.pack(name, expert, matrix, INT4).data, one[expert].data)
    assert alone.tensors() == made.tensors()


@pytest.mark.parametrize("stored", ["fp16", "fp8", "nvfp4"])
def test_floats_stay_what_they_are(checkpoint: Checkpoint, hessians: Hessians, stored: str) -> None:
    name = f"layers.{LAYER}.attention.q.weight"
    form = PartFormat.model_validate({"format": stored})
    ((_, matrix),) = matrices(name, checkpoint)
    made = Rounding(checkpoint, hessians, SETTINGS)
    assert made.pack(name, None, matrix, form).data.tobytes() == quantize(matrix, form).data.tobytes()
    assert made.tensors() == []
    assert made.pack(name, None, matrix, INT4).scales is not None
    assert [tensor.name for tensor in made.tensors()] == [name]


def test_a_layer_that_overflows_is_named(reference: LayeredReference, hidden: Array) -> None:
    broken = hidden.copy()
    broken[0, 3, 5] = np.inf
    with pytest.raises(UserError, match=f"Layer {LAYER} of the checkpoint gives NaN or infinity"):
        observed(reference, LAYER, broken)
