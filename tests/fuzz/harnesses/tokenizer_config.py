"""tokenizer_config.json and generation_config.json: one object, used as both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ernie_export.checkpoint import embedded
from tests.fuzz.harnesses import tokenizer_json

JSON = True
TOKENS = (
    b'"eos_token_id":',
    b'"chat_template":',
    b'"extra_special_tokens":',
    b'"content":',
    b"{{",
    b"}}",
    b"{%",
)


def seeds() -> Iterator[bytes]:
    for name in ("tokenizer_config.json", "generation_config.json"):
        yield (embedded.folder() / name).read_bytes()
    tokens = {"bos_token": {"content": "<s>"}, "additional_special_tokens": ["<x>", {"content": "<y>"}]}
    templates = [{"name": "default", "template": "{{ messages[0].content }}</s>"}]
    yield json.dumps(tokens | {"chat_template": templates, "eos_token_id": [1, 2]}).encode()


def parse(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(tokenizer_json.made()[0])
    for name in ("tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes(data)
    tokenizer_json.use(folder)
