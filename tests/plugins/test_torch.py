"""The PyTorch host on the emulated kernels: ernie-nano end to end, against transformers on the same weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ernie_export.checkpoint.layout import part_of
from ernie_export.errors import UserError, WorkError
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.model import operators
from ernie_export.quantize.formats import dequantize, quantize
from ernie_export.recipe import Recipe
from ernie_export.reference.transformers_model import Reference
from plugins.build import toolkit
from plugins.torch.engine import TorchEngine
from plugins.torch.library import CALLS, Library
from plugins.torch.model import empty_cache
from plugins.torch.operators import register, remove
from tests.plugins import exact
from tests.plugins.emulated import ROOT, built

BuiltBundle = Callable[[str], Path]
IDS: list[int] = np.random.default_rng(5).integers(3, 1536, 60).tolist()
CPU = torch.device("cpu")
#: Error of the logits relative to their norm, over six layers: about five times what the dtype's rounding gives.
LIMITS = {(torch.float16, 16): 3e-3, (torch.bfloat16, 16): 2.5e-2, (torch.float16, 8): 3e-2}


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    """On one thread: between launches PyTorch has next to nothing to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = Library(built("plain") / "libernie_kernels.so", CPU)
    register(loaded)
    yield loaded
    remove("cpu")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """transformers' model on the weights that the codes of recipe int4 stand for."""
    parts = Recipe.find("int4").parts
    folder = tmp_path_factory.mktemp("dequantized") / "nano"
    shutil.copytree(nano, folder)
    tensors = load_file(nano / "model.safetensors")
    for name, weight in tensors.items():
        if (part := part_of(name)) not in ("router", "norms"):
            form = parts.of(part, None)
            tensors[name] = dequantize(quantize(weight, form), form)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return Reference.open(folder)


@pytest.fixture(scope="module")
def engine(bundle: BuiltBundle, library: Library) -> TorchEngine:
    return TorchEngine(bundle("int4"), library)


@pytest.mark.parametrize(("activations", "cache_bits"), LIMITS)
def test_as_transformers(
    bundle: BuiltBundle, library: Library, reference: Reference, activations: torch.dtype, cache_bits: int
) -> None:
    """Prefill, tokens one by one over the cache, several tokens over it."""
    session = TorchEngine(bundle("int4"), library, activations, cache_bits).start(1, 64)
    steps = [IDS[:30], *([token] for token in IDS[30:34]), IDS[34:52]]
    logits = [session.feed([step], all_logits=True).logits[0] for step in steps]
    want = reference.run(np.array([IDS[:52]])).logits[0].astype(np.float64)
    assert session.lengths == [52]
    for begin, end in ((0, 30), (30, 34), (34, 52)):
        got = np.concatenate(logits)[begin:end]
        assert exact.error(got, want[begin:end]) < LIMITS[activations, cache_bits]


def test_a_batch(engine: TorchEngine, reference: Reference) -> None:
    """Prompts of 20 and 7 tokens; then both together, one alone, both, after one was cut."""
    session = engine.start(2, 64)
    rows = [IDS[:30], IDS[30:60]]
    want = [reference.run(np.array([row])).logits[0].astype(np.float64) for row in rows]
    at = [0, 0]
    for steps in ((20, 7), (1, 1), (1, 1), (0, 2), (3, 3)):
        fed = session.feed([row[a : a + s] for row, a, s in zip(rows, at, steps, strict=True)])
        at = [a + s for a, s in zip(at, steps, strict=True)]
        assert session.lengths == at
        for row, step in enumerate(steps):
            assert fed.logits[row].shape == (min(step, 1), 1536)
            if step:
                assert exact.error(fed.logits[row], want[row][at[row] - 1 : at[row]]) < 3e-3
    session.truncate(0, 11)
    assert session.lengths == [11, at[1]]
    fed = session.feed([rows[0][11:13], []])
    assert exact.error(fed.logits[0], want[0][12:13]) < 3e-3


def test_writes_the_same_text(engine: TorchEngine, reference: Reference, nano: Path) -> None:
    tokenizer = TextTokenizer.read(nano)
    prompt = tokenizer.chat([{"role": "user", "content": "What is a list?"}])
    (answer,) = generate(engine, [prompt], 24, Sampling(), frozenset())
    assert answer.token_ids == reference.greedy(prompt, 24)


def test_from_the_command_line(
    bundle: BuiltBundle, library: Library, reference: Reference, nano: Path
) -> None:
    command = [sys.executable, "-m", "plugins.torch", str(bundle("int4")), "A list is", "--max-tokens", "5"]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    tokenizer = TextTokenizer.read(nano)
    assert done.stdout == tokenizer.decode(reference.greedy(tokenizer.encode("A list is"), 5)) + "\n"


def test_without_a_gpu_the_command_says_so(bundle: BuiltBundle) -> None:
    command = [sys.executable, "-m", "plugins.torch", str(bundle("int4")), "A list is"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "PyTorch finds no GPU here" in done.stderr


def test_the_cache_is_written_in_place(engine: TorchEngine) -> None:
    session = engine.start(1, 32)
    places = [kept.data_ptr() for pair in session.cache for kept in pair]  # type: ignore[union-attr]
    session.feed([IDS[:9]])
    assert [kept.data_ptr() for pair in session.cache for kept in pair] == places  # type: ignore[union-attr]
    assert all((kept[:, :, :9] != 0).any() and (kept[:, :, 9:] == 0).all() for kept in session.cache[5])


@pytest.mark.parametrize("past", [0, 5])
def test_the_operator_of_the_graph_grows_its_cache(library: Library, past: int) -> None:
    """As the plain implementation does in fp32."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, width, dtype=torch.float16) for width in (128, 64, 64))
    cache = [torch.randn(2, 2, past, 32, dtype=torch.float16) for _ in range(2)]
    cos, sin = torch.randn(2, 16, 16)
    lengths = torch.tensor([past + 3, max(past - 1, 0) + 3])
    where = (lengths[:, None] - 3 + torch.arange(3), (lengths - 1).to(torch.int32), torch.tensor(past + 3))
    numbers = (4, 2, 0.2)
    got = operators.cached_attention(query, key, value, *cache, cos, sin, *where, *numbers)
    wide = [tensor.float() for tensor in (query, key, value, *cache)]
    want = operators.cached_attention(*wide, cos, sin, *where, *numbers)
    for row, length in enumerate(lengths.tolist()):
        assert exact.error(got[0][row].numpy(), want[0][row].double().numpy()) < 1e-3
        for made, meant in zip(got[1:], want[1:], strict=True):
            assert exact.error(made[row, :, :length].numpy(), meant[row, :, :length].double().numpy()) < 1e-3


def test_other_dtypes_and_removed_kernels_are_plain(library: Library) -> None:
    weight, scales = torch.full((4, 16), 0x99, dtype=torch.uint8), torch.ones(4, 1, dtype=torch.float16)
    x = torch.ones(1, 1, 32)
    launched = torch.ops.ernie.quantized_linear
    assert launched(x, weight, scales, 4, 32).flatten().tolist() == [32.0] * 4
    with pytest.raises(ValueError, match=r"scales is torch\.float32"):
        launched(x.half(), weight, scales.float(), 4, 32)
    remove("cpu")
    try:
        assert launched(x.half(), weight, scales.float(), 4, 32).flatten().tolist() == [32.0] * 4
    finally:
        register(library)


def test_what_the_kernels_would_misread_is_refused(library: Library, engine: TorchEngine) -> None:
    layer = engine.model.layers[1]
    x, weights = torch.ones(1, 2, 256, dtype=torch.float16), layer.experts
    indices, scores = layer.router(x)
    packed = (weights.gate_up, weights.gate_up_scales, weights.down, weights.down_scales)
    launched = operators.moe_experts
    with pytest.raises(
        ValueError, match=r"scores is torch.float32 \[1, 2, 4\] on cpu; it must be torch.float16"
    ):
        launched(x, indices, scores.float(), *packed, 4, 128)
    with pytest.raises(
        ValueError, match=r"gate_up is .*\[16, 255, 128\].*must be torch.uint8 \[16, 256, 128\]"
    ):
        launched(x, indices, scores, weights.gate_up[:, 1:], *packed[1:], 4, 128)
    with pytest.raises(ValueError, match="down_scales is not contiguous"):
        swapped = weights.down_scales.transpose(0, 1).contiguous().transpose(0, 1)
        launched(x, indices, scores, *packed[:3], swapped, 4, 128)
    with pytest.raises(
        WorkError, match="ernie_moe_experts refuses: block_size is 256; it must be 32, 64 or 128"
    ):
        scale = torch.ones(16, 256, 1, dtype=torch.float16)
        launched(x, indices, scores, weights.gate_up, scale, weights.down, scale[:, :, :0], 4, 256)
    with pytest.raises(ValueError, match="of 3 bits; it must be"):
        launched(x, indices, scores, *packed, 3, 128)


def test_what_is_out_of_range_is_said_once(library: Library, engine: TorchEngine) -> None:
    weights = engine.model.layers[1].experts
    x, scores = torch.ones(1, 1, 256, dtype=torch.float16), torch.ones(1, 1, 4, dtype=torch.float16)
    indices = torch.tensor([[[0, 1, 2, 16]]])
    assert weights(x, indices, scores).isnan().all()
    with pytest.raises(WorkError, match="out of range"):
        library.require_sound()
    library.require_sound()


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not load.*Build it: `make test-plugins`"):
        Library(tmp_path / "libernie_kernels.so", CPU)


def test_a_cache_of_8_bits_is_half_as_large(engine: TorchEngine) -> None:
    def size(bits: int) -> int:
        cache = empty_cache(engine.config, 1, 64, CPU, torch.float16, bits)
        tensors = [
            t for pair in cache for kept in pair for t in (kept if isinstance(kept, tuple) else [kept])
        ]
        return sum(tensor.nbytes for tensor in tensors)

    assert size(8) == size(16) * (32 + 4) // 64


def test_the_structs_are_those_of_the_headers(tmp_path: Path) -> None:
    """A name that is not there does not compile; one more or one elsewhere changes a number."""
    lines = ["#include <cstdio>"]
    names = {call.__name__: [name for name, _ in call._fields_] for call in CALLS}
    lines += [f'#include "{name.lower()}.h"' for name in names]
    lines += ["int main() {"]
    for name, fields in names.items():
        lines.append(f'std::printf("%zu ", sizeof(ernie::{name}));')
        for field in fields:
            inside = f"format.{field}" if field in ("bits", "block_size") else field
            lines.append(f'std::printf("%zu ", offsetof(ernie::{name}, {inside}));')
    source = tmp_path / "places.cpp"
    source.write_text("\n".join([*lines, "}"]))
    include = ["-I", str(ROOT / "plugins" / "kernels"), "-isystem", str(toolkit() / "include")]
    subprocess.run(["g++", "-std=c++17", *include, str(source), "-o", str(tmp_path / "places")], check=True)
    told = subprocess.run([str(tmp_path / "places")], capture_output=True, text=True, check=True).stdout
    import ctypes

    ours = [
        number
        for call in CALLS
        for number in (ctypes.sizeof(call), *(getattr(call, name).offset for name, _ in call._fields_))
    ]
    assert list(map(int, told.split())) == ours
