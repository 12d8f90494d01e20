"""Our traceable model, run in PyTorch with real weights, against transformers' own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.graph import weight_writer, weights
from ernie_export.model import operators
from ernie_export.model.ernie import Ernie
from ernie_export.quantize.formats import Packed, dequantize, stored_names
from ernie_export.recipe import PartFormat, Parts, Recipe
from ernie_export.reference.transformers_model import Reference

CONTEXT = 64


def loaded(checkpoint: Checkpoint, parts: Parts, tmp_path: Path) -> Ernie:
    """The model with its buffers read back from the weight files that a bundle would hold."""
    model = Ernie(checkpoint.config, parts, CONTEXT)
    shapes = {
        name: (np.dtype(str(buffer.dtype).removeprefix("torch.")), tuple(buffer.shape))
        for name, buffer in model.named_buffers()
    }
    state = {}
    for file in weights.layout(shapes):
        path = tmp_path / Path(file.path).name
        weight_writer.write(file, checkpoint, parts, path, ThreadPoolExecutor(1))
        for stored in file.tensors:
            data = np.fromfile(path, np.uint8, stored.nbytes, offset=stored.offset)
            dtype = getattr(torch, stored.dtype.name)
            state[stored.name] = torch.from_numpy(data).view(dtype).view(stored.shape)
    model.load_state_dict(state, assign=True)
    return model


def empty_cache(checkpoint: Checkpoint, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    config = checkpoint.config
    shape = (batch, config.num_key_value_heads, 0, config.head_dim)
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]


def test_fp32_equals_transformers(nano: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(nano)
    model = loaded(checkpoint, Recipe.find("fp32").parts, tmp_path)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, checkpoint.config.vocab_size, (2, 24)))
    want = torch.from_numpy(Reference.open(nano).run(ids.numpy()).logits)
    positions = torch.arange(24).expand(2, -1)
    whole, _ = model(ids, torch.ones(2, 24, dtype=torch.int64), positions, empty_cache(checkpoint, 2))
    torch.testing.assert_close(whole, want, atol=1e-4, rtol=0)
    first, cache = model(
        ids[:, :9], torch.ones(2, 9, dtype=torch.int64), positions[:, :9], empty_cache(checkpoint, 2)
    )
    rest, _ = model(ids[:, 9:], torch.ones(2, 24, dtype=torch.int64), positions[:, 9:], cache)
    torch.testing.assert_close(torch.cat((first, rest), 1), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["int8", "int4", "fp8", "nvfp4"])
def test_quantized_model_runs_on_dequantized_weights(nano: Path, tmp_path: Path, form: str) -> None:
    """The same model in fp32 on the weights that the codes stand for gives the same logits."""
    checkpoint = Checkpoint.open(nano)
    part = PartFormat(format=form, block_size=128 if form.startswith("int") else None)
    parts = Parts(experts=part, attention=part, shared=part, dense=part, head=part, embedding=part)
    quantized = loaded(checkpoint, parts, tmp_path)
    plain = loaded(checkpoint, Recipe.find("fp32").parts, tmp_path)
    state, stored = dict(plain.named_buffers()), dict(quantized.named_buffers())
    for name in state:
        data, *scales = (stored[each] for each in stored_names(name) if each in stored)
        if scales:
            state[name] = meant(part, data, *scales)
    plain.load_state_dict(state, assign=True)
    ids = torch.arange(3, 20)[None]
    inputs = (ids, torch.ones_like(ids), torch.arange(17)[None], empty_cache(checkpoint, 1))
    torch.testing.assert_close(quantized(*inputs)[0], plain(*inputs)[0], atol=1e-4, rtol=0)


def meant(form: PartFormat, *stored: torch.Tensor) -> torch.Tensor:
    """What the stored form of a matrix, or of a stack of them, stands for."""
    arrays = [each.view(torch.uint8).numpy().view(str(each.dtype).removeprefix("torch.")) for each in stored]
    if arrays[0].ndim == 2:
        return torch.from_numpy(dequantize(Packed(*arrays), form))
    return torch.stack([meant(form, *each) for each in zip(*stored, strict=True)])


def test_plain_attention_stays_on_the_device_of_its_inputs() -> None:
    """On the meta device a tensor of the CPU's is refused, as on a GPU; so the body runs, not its shape rule."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    query, new, past, table = empty(2, 3, 128), empty(2, 3, 64), empty(2, 2, 5, 32), empty(64, 16)
    where = (empty(2, 3, dtype=torch.int64), empty(2, dtype=torch.int32), torch.tensor(8))
    given = (query, new, new, past, past, table, table, *where, 4, 2, 0.2)
    output, *present = operators.cached_attention._init_fn(*given)
    assert output.shape == query.shape and [kept.shape for kept in present] == [(2, 2, 8, 32)] * 2
