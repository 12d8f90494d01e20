"""Tokenizers, chat templates and generation configs: `build` must find them before the work begins."""

from __future__ import annotations

import json
from typing import Any

from tests.bad_input.attack import Arguments, Attacks, Place, edit_json

TOKENIZERS = Attacks("Tokenizer and generation config")
TEMPLATES = Attacks("Chat template")


def with_text(place: Place, name: str, data: bytes | str | None) -> Arguments:
    """ernie-nano with one file replaced, or removed."""
    folder = place.nano()
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return place.build(folder)


def with_fields(place: Place, file: str, **fields: Any) -> Arguments:
    folder = place.nano()
    edit_json(folder / file, **fields)
    return place.build(folder)


TEXTS: list[tuple[str, str, bytes | str | None]] = [
    ("no tokenizer.json", "tokenizer.json", None),
    ("a tokenizer.json that is not JSON", "tokenizer.json", "BPE"),
    ("a tokenizer.json that is not UTF-8", "tokenizer.json", b"\xff\xfe\x00"),
    ("a tokenizer.json that is no tokenizer", "tokenizer.json", '{"version": "1.0", "vocab": {}}'),
    ("a tokenizer.json of a model that does not exist", "tokenizer.json", '{"model": {"type": "Magic"}}'),
    ("a tokenizer_config.json that is not JSON", "tokenizer_config.json", "{'bos_token': '<s>'}"),
    ("a tokenizer_config.json that is a list", "tokenizer_config.json", "[1]"),
    ("a generation_config.json that is not JSON", "generation_config.json", "eos_token_id: 2"),
    ("a generation_config.json that is a number", "generation_config.json", "2"),
]
for name, file, data in TEXTS:
    TOKENIZERS.add(name)(lambda place, file=file, data=data: with_text(place, file, data))

FIELDS: list[tuple[str, str, dict[str, Any]]] = [
    ("a token without content", "tokenizer_config.json", {"bos_token": {"lstrip": False}}),
    ("a token that is a number", "tokenizer_config.json", {"sep_token": 5}),
    ("extra tokens that are a text", "tokenizer_config.json", {"extra_special_tokens": "<a>"}),
    ("an extra token that is null", "tokenizer_config.json", {"additional_special_tokens": [None]}),
    ("an end token that is a text", "generation_config.json", {"eos_token_id": "</s>"}),
    ("an end token below zero", "generation_config.json", {"eos_token_id": [-1]}),
    ("an end token outside the vocabulary", "generation_config.json", {"eos_token_id": [2, 99_999]}),
]
for name, file, fields in FIELDS:
    TOKENIZERS.add(name)(lambda place, file=file, fields=fields: with_fields(place, file, **fields))


@TOKENIZERS.add("the tokenizer of another model, with a larger vocabulary")
def _(place: Place) -> Arguments:
    folder = place.nano()
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"word{number}": len(vocabulary) + number for number in range(1000)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return place.build(folder)


ALL_MEMORY = "takes all memory"
SOURCES: list[tuple[str, bytes | str]] = [
    ("broken syntax", "{% for message in messages %}"),
    ("not UTF-8", b"{{ '\xff' }}"),
    ("calls a function that does not exist", "{{ system('touch owned') }}"),
    ("raises", "{{ raise_exception('no conversations today') }}"),
    ("reaches for Python", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ("reaches for Python through a format", "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}"),
    ("reads a file", "{% include '/etc/passwd' %}"),
    ("divides by zero", "{{ 1 / 0 }}"),
    ("recurses for ever", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
    (
        "loops for ever",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ),
    ("a range of 10^12", "{{ range(10 ** 12) | list }}"),
    (ALL_MEMORY, "{{ 'a' * 10 ** 12 }}"),
    (
        "takes all memory, doubling",
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    ),
    ("takes all memory, by a filter", "{{ 'a' | center(10 ** 12) }}"),
    ("a power without end", "{{ 7 ** (10 ** 9) }}"),
    ("says without end", "{% for a in range(99999) %}{{ '0123456789' * 100 }}{% endfor %}"),
]
for name, source in SOURCES:
    like = ALL_MEMORY if name.startswith(f"{ALL_MEMORY},") else ""
    TEMPLATES.add(name, like=like)(
        lambda place, source=source: with_text(place, "chat_template.jinja", source)
    )


@TEMPLATES.add("a template in tokenizer_config.json that is a number")
def _(place: Place) -> Arguments:
    folder = place.nano()
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=5)
    return place.build(folder)


@TEMPLATES.add("a list of templates without names")
def _(place: Place) -> Arguments:
    folder = place.nano()
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=[{"template": "x"}])
    return place.build(folder)
