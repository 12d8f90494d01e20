"""Tokenizers saved by transformers in the layout of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.generate.recurrent_engine import RecurrentEngine

TEXT = [
    "A list is a sequence of items. User: How do I sort a list? Assistant: Call sorted() on it.",
    "Python's documentation says: naïve façade, 10 € — 日本語 and 😀.",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "<mask:1>"]
TEMPLATE = """{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = true %}{% endif -%}
{{- '<|begin_of_sentence|>' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}{{- message['content'] + '\\n' -}}
    {%- elif message['role'] == 'user' -%}{{- 'User: ' + message['content'] + '\\n' -}}
    {%- elif message['role'] == 'assistant' -%}{{- 'Assistant: ' + message['content'] + sep_token -}}
    {%- else -%}{{- raise_exception('no role ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant: ' -}}{%- endif -%}
"""


@pytest.fixture
def engine() -> RecurrentEngine:
    return RecurrentEngine()


def _save(tokenizer: Tokenizer, folder: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        cls_token="<|begin_of_sentence|>",
        sep_token="<|end_of_sentence|>",
        mask_token="<mask:1>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE, as ernie-nano has it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    return _save(tokenizer, tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BPE of SentencePiece's kind, as the published ERNIE checkpoints have it."""
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyzATU:.,"]
    merges = [("▁", "l"), ("i", "s"), ("▁l", "is"), ("▁lis", "t")]
    vocab = {name: id for id, name in enumerate([*names, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return _save(tokenizer, tmp_path_factory.mktemp("byte_fallback"))


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer_folder(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder
