"""chat_template.jinja, compiled and rendered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ernie_export.checkpoint import embedded
from ernie_export.generate.chat_template import ChatTemplate

JSON = False
TOKENS = (b"{{", b"}}", b"{%", b"%}", b"{#", b"#}", b"for m in messages", b"endfor", b"if ", b"endif", b"set ",
          b"namespace(", b"loop.", b"messages", b"message['content']", b"|tojson", b"|length", b"|join(", b"**",
          b"raise_exception(", b"strftime_now(", b"range(", b".__class__", b"macro ", b"endmacro", b"~", b"%s",
          b"break", b"continue", b"|format(", b"|map(", b"|list", b"[::-1]", b"cycler(", b"lipsum(", b"joiner(",
          b"dict(", b"include ", b"import ", b"extends ", b"block ", b"filter ", b"|replace(", b"|center(")  # fmt: skip
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a list?\n{{ 7 }}"},
    {"role": "assistant", "content": "A sequence."},
]


def seeds() -> Iterator[bytes]:
    yield (embedded.folder() / "chat_template.jinja").read_bytes()
    yield b"{%- for m in messages %}{{ m['role'] + ': ' + m.content | trim }}\n{% endfor -%}{{ bos_token }}"
    yield b"{% set n = namespace(x=0) %}{% for i in range(3) %}{% set n.x = n.x + i %}{% endfor %}{{ n.x | tojson }}"
    yield b"{% macro f(a, b=1) %}{% if a is defined %}{{ a * b }}{% else %}-{% endif %}{% endmacro %}{{ f(2) }}"
    yield b"{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}{{ strftime_now('%Y') }}"


def parse(data: bytes, folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(data)
    template = ChatTemplate.read(folder, {}, {"bos_token": "<s>", "eos_token": "</s>"})
    assert template is not None
    text = template.render(TURNS, add_generation_prompt=True)
    assert isinstance(text, str)
