"""A tiny checkpoint, the parts of a bundle made from it, and engines of numpy that can be made wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.engine.info import EngineInfo
from ernie_export.engine.interface import Fed
from ernie_export.reference.transformers_model import Reference

Array = np.ndarray[Any, Any]
VOCAB = 300


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    torch.manual_seed(3)
    model = Ernie4_5_MoeForCausalLM(
        Ernie4_5_MoeConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            moe_num_experts=8,
            moe_k=2,
            moe_intermediate_size=16,
            moe_num_shared_experts=1,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.normal_(std=0.5)  # logits that are far apart
        for layer in model.model.layers[1:]:
            layer.mlp.experts.gate_up_proj.normal_(std=0.3)  # experts that matter
            layer.mlp.experts.down_proj.normal_(std=0.3)
            layer.mlp.gate.weight.normal_(std=0.3)
            layer.mlp.gate.moe_statics.e_score_correction_bias.normal_(std=0.1)
    return _with_tokenizer(model, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def dense_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

    torch.manual_seed(4)
    config = Ernie4_5Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
    )
    return _with_tokenizer(Ernie4_5ForCausalLM(config), tmp_path_factory.mktemp("dense"))


def _with_tokenizer(model: Any, folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder_for(tmp_path: Path) -> Callable[[Path], Path]:
    """folder_for(checkpoint): what validation reads of a bundle: engine.json, a graph, the tokenizer."""

    def made(checkpoint: Path) -> Path:
        import onnx
        from onnx import helper, numpy_helper

        folder = tmp_path / "bundle"
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(checkpoint / name, folder / name)
        experts = numpy_helper.from_array(np.zeros(16, np.float32), "layers.1.experts.down")
        graph = helper.make_graph([], "engine", [], [], [experts])
        onnx.save(helper.make_model(graph), folder / "model.onnx")
        info = info_of(Reference.open(checkpoint))
        (folder / EngineInfo.FILE).write_text(info.model_dump_json())
        return folder

    return made


def info_of(reference: Reference) -> EngineInfo:
    config = reference._model.config
    return EngineInfo(
        runtime="numpy",
        graph="model.onnx",
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=8,
        vocab_size=VOCAB,
        max_context=128,
        moe_layers=reference.moe_layers,
        num_experts=8 if reference.moe_layers else 0,
        experts_per_token=2 if reference.moe_layers else 0,
    )


Change = Callable[[Array, list[int], int], Array]
"""(logits [n,V] of the tokens just fed, tokens in the cache, rows in the batch) → other logits."""


@dataclass
class ReferenceEngine:
    """An engine that is the reference itself, run again over everything for each feed."""

    reference: Reference
    change: Change
    probes: Sequence[str] = ()

    @property
    def info(self) -> EngineInfo:
        return info_of(self.reference)

    def start(self, batch: int = 1, max_length: int | None = None) -> ReferenceSession:
        return ReferenceSession(self, [[] for _ in range(batch)])


@dataclass
class ReferenceSession:
    engine: ReferenceEngine
    tokens: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.tokens]

    def truncate(self, row: int, length: int) -> None:
        del self.tokens[row][length:]

    def feed(
        self,
        rows: Sequence[Sequence[int]],
        all_logits: bool = False,
        given: Sequence[Mapping[str, Array]] = (),
    ) -> Fed:
        fed = Fed([], [])
        for tokens, row in zip(self.tokens, rows, strict=True):
            tokens += row
            logits, probes = self._run(tokens, len(row)) if row else (np.empty((0, VOCAB), np.float32), {})
            fed.logits.append(logits if all_logits else logits[-1:])
            fed.probes.append(probes)
        return fed

    def _run(self, tokens: list[int], new: int) -> tuple[Array, dict[str, Array]]:
        """The model is the reference's, so what it computes is what it would compute of what it is given."""
        states = self.engine.reference.states(np.array(tokens))
        probes = {name: states[name][-new:] for name in self.engine.probes}
        return self.engine.change(states["logits"][-new:], tokens, len(self.tokens)), probes


@pytest.fixture
def opener(checkpoint: Path) -> Callable[..., Any]:
    """opener(change=…, prepare=…): opens engines of numpy on the tiny checkpoint, or another.

    `change` alters their logits, `prepare` their own copy of transformers' model.
    """

    def made(
        change: Change = lambda logits, *_: logits,
        prepare: Callable[[Any], object] = lambda model: None,
        folder: Path = checkpoint,
    ) -> Callable[[Path, Sequence[str], Sequence[str]], ReferenceEngine]:
        reference = Reference.open(folder)
        prepare(reference._model)
        return lambda _, probes, __: ReferenceEngine(reference, change, probes)

    return made


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    rng = np.random.default_rng(5)
    words = [
        "".join(chr(97 + letter) for letter in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(400)
    ]
    path.write_text(" ".join(words))
    return path
