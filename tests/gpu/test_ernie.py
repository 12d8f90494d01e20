"""What the kit reads without pydantic and safetensors is what the package reads with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.graph.weights import Stored as Place
from ernie_export.graph.weights import matrices, plain
from ernie_export.model.ernie import Ernie
from ernie_export.quantize.formats import Packed, dequantize
from ernie_export.recipe import Recipe
from tests.gpu import ernie, exact, made
from tests.gpu.end_to_end import QUESTION
from tests.plugins import exact as numpy_exact

FIELDS = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "moe_num_experts",
    "moe_k",
    "moe_intermediate_size",
    "moe_norm_min",
    "shared_intermediate_size",
]
CONTEXT = 64


@pytest.mark.parametrize("path", [ernie.NANO / "config.json", ernie.LARGE])
def test_config(path: Any) -> None:
    ours, real = ernie.Config(path), ErnieConfig.read(path.parent)
    assert {name: getattr(ours, name) for name in FIELDS} == {name: getattr(real, name) for name in FIELDS}
    layers = range(real.num_hidden_layers)
    assert [ours.is_moe_layer(layer) for layer in layers] == [real.is_moe_layer(layer) for layer in layers]
    with pytest.raises(AttributeError, match="no moe_nothing"):
        _ = ours.moe_nothing


def test_the_model_is_that_of_recipe_int4() -> None:
    def buffers(config: Any, parts: Any) -> dict[str, Any]:
        model = Ernie(config, parts, CONTEXT)
        return {name: (buffer.dtype, buffer.shape) for name, buffer in model.named_buffers()}

    ours = buffers(ernie.Config(ernie.NANO / "config.json"), ernie.Parts())
    assert ours == buffers(ErnieConfig.read(ernie.NANO), Recipe.find("int4").parts)


def test_weights_of_ernie_nano() -> None:
    """Each buffer has its shape, and is what the weight writer takes for it from the checkpoint, in 4 or 8 bits."""
    config, weights = ernie.nano_weights(CONTEXT)
    model, checkpoint = Ernie(config, ernie.Parts(), CONTEXT), Checkpoint.open(ernie.NANO)  # type: ignore[arg-type]
    assert {n: (w.dtype, w.shape) for n, w in weights.items()} == {
        n: (b.dtype, b.shape) for n, b in model.named_buffers()
    }
    bits = ernie.stored_bits(model)
    for name in [n for n in weights if not n.endswith("scales")]:
        mine = weights[name]
        if bits.get(name):
            mine = ernie.dequantized(mine, weights[ernie.scales_of(name)], bits[name])
            theirs = np.stack([matrix.astype(np.float32) for _, matrix in matrices(name, checkpoint)])
            assert np.linalg.norm(mine.numpy() - theirs) < {4: 0.12, 8: 0.01}[bits[name]] * np.linalg.norm(
                theirs
            )
        else:
            place = Place(name, np.dtype(np.float32), tuple(mine.shape), 0)
            np.testing.assert_allclose(mine.numpy(), plain(place, checkpoint), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_mean_what_the_package_means(bits: int) -> None:
    form = Recipe.find(f"int{bits}").parts.experts
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    codes, scales = ernie.quantized(weight, bits, form.block_size or 0)
    theirs = dequantize(Packed(codes.numpy(), scales.numpy()), form)
    assert (ernie.dequantized(codes, scales, bits).numpy() == theirs).all()
    assert (exact.dequantized(codes, scales, bits).numpy() == theirs).all()


def test_the_question_is_what_the_template_makes() -> None:
    assert TextTokenizer.read(ernie.NANO).chat([{"role": "user", "content": "What is a list?"}]) == QUESTION


def test_float64_is_the_same_twice() -> None:
    """In PyTorch here, in numpy in tests/plugins."""
    random = torch.Generator().manual_seed(3)
    layer = made.experts(random, 4, 64, 64, 4, 32)
    x = made.activations(random, 1, 5, 64, dtype=torch.float16)
    indices, scores = made.choices(random, 5, 4, 2, torch.float16)
    up, down = (
        numpy_exact.dequantized(part.data.numpy(), part.scales.numpy(), 4)
        for part in (layer.gate_up, layer.down)
    )
    theirs = numpy_exact.experts(x[0].numpy(), indices[0].numpy(), scores[0].numpy(), up, down)
    np.testing.assert_allclose(
        exact.experts(x, indices, scores, layer)[0].numpy(), theirs, rtol=1e-9, atol=1e-12
    )
    step = made.cached(random, [9], 1, 20, 4, 2, 32, torch.float16)
    query = numpy_exact.turned(
        step.query[0].double().numpy().reshape(1, 4, 32),
        step.cos[9].double().numpy(),
        step.sin[9].double().numpy(),
    )
    keys, values = (part[0, :, :10].double().numpy() for part in (step.keys, step.values))
    want = numpy_exact.attention(query[0], keys, values, step.scale)
    np.testing.assert_allclose(exact.attention(step, 0).numpy().reshape(4, 32), want, rtol=1e-9, atol=1e-12)
