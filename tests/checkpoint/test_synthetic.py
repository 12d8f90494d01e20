from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from ernie_export import lock
from ernie_export.checkpoint import random_weights, shapes, synthetic
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.layout import tensor_shapes
from ernie_export.errors import UserError, WorkError
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.progress import Silent, Step

TINY = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "vocab_size": 1600,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "moe_num_experts": 8,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 4,
}
Make = Callable[..., Path]


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    """A folder with a config.json and nothing else."""
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture
def make(tmp_path: Path, shape: Path) -> Make:
    """make(name, …) writes a checkpoint of that shape."""

    def make(name: str, **options: Any) -> Path:
        synthetic.synthesize(str(shape), tmp_path / name, Silent(), **options)
        return tmp_path / name

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_is_a_checkpoint_in_the_published_layout(make: Make) -> None:
    checkpoint = Checkpoint.open(make("a"))
    assert set(checkpoint.tensors) == set(tensor_shapes(checkpoint.config))
    fp32 = {name for name, info in checkpoint.tensors.items() if info.dtype == "fp32"}
    assert fp32 == {name for name in checkpoint.tensors if ".mlp.gate." in name or "moe_statics" in name}
    assert {info.dtype for info in checkpoint.tensors.values()} == {"fp32", "bf16"}


def test_transformers_reads_it_marker_and_all(make: Make) -> None:
    from transformers import Ernie4_5_MoeForCausalLM

    _model, loading = Ernie4_5_MoeForCausalLM.from_pretrained(make("a"), output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]


def test_the_bytes_follow_from_the_seed_alone(make: Make) -> None:
    first = contents(make("a", seed=7, threads=1))
    assert contents(make("b", seed=7, threads=3)) == first
    assert contents(make("c", seed=8))["model.safetensors"] != first["model.safetensors"]


def test_a_layer_is_the_same_in_a_model_of_another_depth(make: Make) -> None:
    deep, flat = Checkpoint.open(make("a")), Checkpoint.open(make("b", layers=2))
    assert (flat.config.num_hidden_layers, flat.config.moe_layers) == (2, (1,))
    for name in flat.tensors:
        assert np.array_equal(flat.array(name), deep.array(name)), name


def test_pieces_make_the_tensor_whatever_their_size_on_disk(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors larger than a piece are put together from several."""
    monkeypatch.setattr(random_weights, "PIECE", 4096)
    embedding = Checkpoint.open(make("a")).array("model.embed_tokens.weight").astype(np.float32)
    parts = np.split(embedding, 25)
    assert all(not np.array_equal(parts[0], part) for part in parts[1:])
    assert np.std([part.std() for part in parts]) < 0.2 * embedding.std()


def test_shards_are_filled_up_and_indexed(make: Make) -> None:
    folder = make("a", shard=100_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 3
    assert set(index["weight_map"].values()) == set(files)
    whole = Checkpoint.open(make("b"))
    assert index["metadata"]["total_size"] == sum(info.nbytes for info in whole.tensors.values())
    sharded = Checkpoint.open(folder)
    assert all(np.array_equal(sharded.array(name), whole.array(name)) for name in whole.tensors)
    sizes = [sum(array.nbytes for array in load_file(folder / name).values()) for name in files]
    assert all(size <= 100_000 for size in sizes[1:])  # the first holds the embedding, larger than a shard
    assert min(sizes[1:-1]) > 60_000


class Spread(NamedTuple):
    deviation: float
    largest: float


def spread(values: np.ndarray) -> Spread:
    values = values.astype(np.float32)
    return Spread(float(values.std()), float(np.abs(values).max()))


def test_the_weights_are_like_trained_ones(make: Make) -> None:
    checkpoint = Checkpoint.open(make("a"))
    of = "model.layers.2"
    reads = spread(checkpoint.array(f"{of}.self_attn.q_proj.weight"))
    writes = spread(checkpoint.array(f"{of}.self_attn.o_proj.weight"))
    assert reads.deviation == pytest.approx(64**-0.5, rel=0.2)
    assert writes.deviation < 0.6 * reads.deviation  # less where it adds to the residual stream
    for found in (reads, writes):
        assert 4 < found.largest / found.deviation < 40  # heavier tails than a normal distribution's
    embedding = np.abs(checkpoint.array("model.embed_tokens.weight").astype(np.float32)).mean(axis=0)
    assert np.sort(embedding)[-1] > 5 * np.median(embedding)  # an outlier channel
    large = int(embedding.argmax())
    rows = np.abs(checkpoint.array(f"{of}.mlp.shared_experts.down_proj.weight").astype(np.float32)).mean(1)
    assert rows.argmax() == large  # the same one in every layer
    norm = checkpoint.array(f"{of}.input_layernorm.weight").astype(np.float32)
    assert norm.argmin() == large and 0.8 < np.median(norm) < 1.2


def test_router_logits_spread_and_the_bias_changes_choices(make: Make) -> None:
    checkpoint = Checkpoint.open(make("a"))
    hidden = np.random.default_rng(0).standard_normal((2000, 64), dtype=np.float32)
    logits = hidden @ checkpoint.array("model.layers.1.mlp.gate.weight").T
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    bias = checkpoint.array("model.layers.1.mlp.moe_statics.e_score_correction_bias")
    chosen, unbiased = (np.sort(np.argsort(-x)[:, :2]) for x in (probability + bias, probability))
    assert 0.2 < np.median(probability.max(1)) < 0.8
    assert 0.01 < (chosen != unbiased).any(1).mean() < 0.5
    load = np.bincount(chosen.ravel(), minlength=8) / chosen.size
    assert load.min() > 0.02


def test_sparse_takes_no_disk_and_is_all_zeros(make: Make) -> None:
    folder = make("a", sparse=True)
    weights = folder / "model.safetensors"
    assert weights.stat().st_blocks * 512 < weights.stat().st_size / 10
    checkpoint = Checkpoint.open(folder)
    assert not any(checkpoint.array(name).any() for name in checkpoint.tensors)
    assert checkpoint.notes == [f"synthetic, like {folder.parent / 'shape'}, all zeros; {synthetic.NOTICE}"]


def test_the_shape_of_the_21b_is_written_at_once_when_sparse(tmp_path: Path) -> None:
    synthetic.synthesize("21b", tmp_path / "m", Silent(), sparse=True)
    checkpoint = Checkpoint.open(tmp_path / "m")
    assert len(checkpoint.files) == 9 and sum(checkpoint.files.values()) == pytest.approx(43.7e9, rel=0.01)


def test_a_report_can_tell_it_from_a_trained_one(make: Make, shape: Path, nano: Path) -> None:
    folder = make("a", seed=3)
    assert synthetic.note(folder) == f"synthetic, like {shape}, seed 3; {synthetic.NOTICE}"
    assert Checkpoint.open(folder).notes == [synthetic.note(folder)]
    assert synthetic.note(nano) is None


def test_ernie_nanos_tokenizer_comes_along_where_its_tokens_fit(make: Make, shape: Path) -> None:
    assert TextTokenizer.read(make("a")).encode("The interpreter")
    (shape / "config.json").write_text(json.dumps(TINY | {"vocab_size": 1000}))
    assert not (make("b") / "tokenizer.json").exists()
    (shape / "config.json").write_text(json.dumps(TINY | {"bos_token_id": 5}))
    assert not (make("c") / "tokenizer.json").exists()


def test_the_shapes_own_tokenizer_is_preferred(make: Make, shape: Path) -> None:
    (shape / "tokenizer.json").write_text("{}")
    assert (make("a") / "tokenizer.json").read_text() == "{}"
    assert not (make("b") / "chat_template.jinja").exists()


@pytest.mark.parametrize("like", ["nano", "0.3B", "21b", "300b"])
def test_every_named_shape_is_a_config(like: str, tmp_path: Path) -> None:
    config = ErnieConfig.read(shapes.folder(like))
    layers = min(config.num_hidden_layers, 4)
    synthetic.synthesize(like, tmp_path / "m", Silent(), layers=layers, sparse=True)
    written = Checkpoint.open(tmp_path / "m").config
    assert written == config.model_copy(
        update={
            "num_hidden_layers": layers,
            "moe_layer_end_index": layers - 1 if config.moe_num_experts else 0,
        }
    )


def test_what_stands_there_is_kept(make: Make) -> None:
    folder = make("a")
    with pytest.raises(UserError, match="exists"):
        make("a")
    assert Checkpoint.open(folder)


def test_too_few_layers_for_an_expert(make: Make) -> None:
    with pytest.raises(UserError) as caught:
        make("a", layers=1)
    assert str(caught.value).endswith(
        "has its first experts in layer 1, so 1 layers would have none. Ask for --layers 2 or more."
    )


def test_no_such_shape(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'22b' is neither a shape .* Did you mean 21b\?"):
        synthetic.synthesize("22b", tmp_path / "m", Silent())


def test_too_small_a_disk_is_found_before_the_work(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(WorkError, match=r"The checkpoint needs 0.00 GB"):
        make("a")
    assert [path.name for path in tmp_path.iterdir()] == ["shape"]
    make("b", sparse=True)


def test_two_runs_do_not_write_the_same_output(make: Make, tmp_path: Path) -> None:
    partial = tmp_path / ".a.partial"
    partial.mkdir()
    with lock.held(partial), pytest.raises(WorkError, match="another run is at work"):
        make("a")
    make("a")


def test_progress_is_told_in_bytes(tmp_path: Path, shape: Path) -> None:
    told: dict[str, Any] = {"done": 0}

    class Counting:
        def advance(self, amount: float = 1) -> None:
            told["done"] += amount

    class Watching:
        @contextmanager
        def step(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
            told.update(total=total, unit=unit)
            yield Counting()

    synthetic.synthesize(str(shape), tmp_path / "m", Watching())
    weights = Checkpoint.open(tmp_path / "m").tensors.values()
    assert told == {"done": told["total"], "total": sum(info.nbytes for info in weights), "unit": "B"}


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from ernie_export.checkpoint import synthetic

class Killing:
    left = 20
    @contextmanager
    def step(self, *_):
        yield self
    def advance(self, amount):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

synthetic.synthesize(sys.argv[1], Path(sys.argv[2]), Killing(), threads=1)
"""


def test_a_killed_run_leaves_no_checkpoint_and_the_next_one_is_whole(
    make: Make, shape: Path, tmp_path: Path
) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(shape), str(tmp_path / "a")])
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / ".a.partial" / "model.safetensors").exists() and not (tmp_path / "a").exists()
    assert contents(make("a")) == contents(make("b"))
    assert not (tmp_path / ".a.partial").exists()
