"""tokenizer.json, and text through it both ways."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ernie_export.generate.tokenizer import TextTokenizer

JSON = True
TOKENS = (b'"type":"ByteLevel"', b'"type":"Replace"', b'"pattern":{"Regex":"', b'"Sequence"', b'"Unigram"',
          b'"Strip"', b'"TemplateProcessing"', b'"Metaspace"', b'"Precompiled"', b'"truncation":{')  # fmt: skip
TEXT = "The list is é 漢字 <s> a\u0301 🙂 don't  12,345\n\tdef f(x): return x\x00"


@cache
def made() -> tuple[bytes, ...]:
    """One of each kind of model, each as small as it can be."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = {
        letter: place for place, letter in enumerate(["<unk>", "a", "b", "ab", "Ġ", "Ġa", "ĠThe", "▁"])
    }
    bpe = Tokenizer(models.BPE(letters, [("a", "b"), ("Ġ", "a")], unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<s>", "</s>"])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 8)])
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("▁a", -1.5)], unk_id=0))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    word = Tokenizer(models.WordPiece(letters | {"##b": 9}, unk_token="<unk>", max_input_chars_per_word=20))
    word.normalizer = normalizers.BertNormalizer()
    word.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.BertPreTokenizer()])
    word.decoder = decoders.WordPiece()
    word.enable_truncation(4)
    word.enable_padding(length=8)
    level = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    made_of: list[Any] = [bpe, unigram, word, level]
    return tuple(tokenizer.to_str().encode() for tokenizer in made_of)


def seeds() -> Iterator[bytes]:
    yield from made()


def parse(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    use(folder)


def use(folder: Path) -> None:
    """Everything that is done with a tokenizer."""
    tokenizer = TextTokenizer.read(folder)
    tokenizer.require_fit(1 << 20)
    ids = tokenizer.encode(TEXT)
    tokenizer.decode(ids)
    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in [*ids, 0, 1, 1 << 19]]
    assert all(isinstance(piece, str) for piece in [*pieces, stream.finish()])
