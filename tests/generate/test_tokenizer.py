from __future__ import annotations

import json
import shutil
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from ernie_export.errors import UserError
from ernie_export.generate.tokenizer import TextTokenizer

EXAMPLES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How do I sort a list?"},
    {"role": "assistant", "content": "Call sorted() — naïvely 😀."},
    {"role": "user", "content": "Thanks.  "},
]


@cache
def ours(folder: Path) -> TextTokenizer:
    return TextTokenizer.read(folder)


@cache
def theirs(folder: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def copy(folder: Path, to: Path, **config: object) -> Path:
    """The folder with other entries in tokenizer_config.json; None takes an entry away."""
    shutil.copytree(folder, to)
    path = to / "tokenizer_config.json"
    merged = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
    return to


@EXAMPLES
@given(text=st.text(max_size=60))
def test_encodes_and_decodes_as_transformers_does(tokenizer_folder: Path, text: str) -> None:
    ids = theirs(tokenizer_folder).encode(text)
    assert ours(tokenizer_folder).encode(text) == ids
    assert ours(tokenizer_folder).decode(ids) == theirs(tokenizer_folder).decode(
        ids, skip_special_tokens=True
    )


@pytest.mark.parametrize("count", range(1, len(TURNS) + 1))
def test_renders_a_chat_as_transformers_does(tokenizer_folder: Path, count: int) -> None:
    expected = theirs(tokenizer_folder).apply_chat_template(
        TURNS[:count], add_generation_prompt=True, return_dict=False
    )
    assert ours(tokenizer_folder).chat(TURNS[:count]) == expected


def test_what_tokenizer_json_puts_around_a_text(byte_level: Path, tmp_path: Path) -> None:
    folder = copy(byte_level, tmp_path / "t", add_bos_token=False)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path))
    ids = ours(folder).encode("a list")
    assert ids == theirs(folder).encode("a list")
    assert ids[0] == 1 and 1 not in ours(folder).chat(TURNS)


def test_special_tokens_that_only_the_config_names(byte_level: Path, tmp_path: Path) -> None:
    folder = copy(byte_level, tmp_path / "t", extra_special_tokens=["<|IMAGE|>"], eos_token="<|done|>")
    text = "a<|IMAGE|>b<|done|>"
    assert ours(folder).encode(text) == theirs(folder).encode(text)
    assert ours(folder).decode(ours(folder).encode(text)) == "ab"


def test_the_template_may_stand_in_the_config(byte_level: Path, tmp_path: Path) -> None:
    template = (byte_level / "chat_template.jinja").read_text()
    folder = copy(byte_level, tmp_path / "t", chat_template=[{"name": "default", "template": template}])
    (folder / "chat_template.jinja").unlink()
    assert ours(folder).chat(TURNS) == ours(byte_level).chat(TURNS)


def test_without_a_template_a_chat_is_refused(byte_level: Path, tmp_path: Path) -> None:
    folder = copy(byte_level, tmp_path / "t")
    (folder / "chat_template.jinja").unlink()
    assert ours(folder).stop_ids == {2}
    with pytest.raises(UserError, match="no chat template"):
        ours(folder).chat(TURNS)


@pytest.mark.parametrize(
    ("generation", "config", "stop"),
    [
        ({"eos_token_id": 2}, None, {2}),
        ({"eos_token_id": [2, 5]}, None, {2, 5}),
        ({}, {"eos_token_id": 1}, {1}),
    ],
)
def test_stop_tokens(
    byte_level: Path, tmp_path: Path, generation: dict, config: dict | None, stop: set
) -> None:
    folder = copy(byte_level, tmp_path / "t")
    (folder / "generation_config.json").write_text(json.dumps(generation))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    end_of_sentence = 4  # closes the turns of the template
    assert ours(folder).stop_ids == stop | {end_of_sentence}


@pytest.mark.parametrize("id", ["2", -1, True, [2, None]])
def test_a_senseless_end_token_is_refused(byte_level: Path, tmp_path: Path, id: object) -> None:
    folder = copy(byte_level, tmp_path / "t")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": id}))
    with pytest.raises(UserError, match="eos_token_id"):
        TextTokenizer.read(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "holds no tokenizer.json"),
        ("tokenizer.json", "{}", "is no tokenizer"),
        ("tokenizer_config.json", "[1]", "no JSON object"),
        ("generation_config.json", "{", "is not JSON"),
        ("chat_template.jinja", "{% if %}", "broken in line 1"),
    ],
)
def test_broken_files(byte_level: Path, tmp_path: Path, file: str, content: str | None, message: str) -> None:
    folder = copy(byte_level, tmp_path / "t")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        TextTokenizer.read(folder)


def test_text_that_is_no_unicode(byte_level: Path) -> None:
    with pytest.raises(UserError, match="not valid Unicode"):
        ours(byte_level).encode("a\udcff")


def test_a_template_that_refuses(byte_level: Path) -> None:
    with pytest.raises(UserError, match="no role robot"):
        ours(byte_level).chat([{"role": "robot", "content": "beep"}])


def test_a_template_cannot_leave_its_sandbox(byte_level: Path, tmp_path: Path) -> None:
    folder = copy(byte_level, tmp_path / "t")
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    with pytest.raises(UserError, match="refuses"):
        ours(folder).chat(TURNS)


@EXAMPLES
@given(ids=st.lists(st.integers(0, 290), max_size=60))
def test_a_stream_of_any_bytes_ends_as_the_whole_text(byte_level: Path, ids: list[int]) -> None:
    stream = ours(byte_level).stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == ours(byte_level).decode(ids)


@EXAMPLES
@given(text=st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=40))
def test_a_stream_gives_whole_characters(tokenizer_folder: Path, text: str) -> None:
    ids = ours(tokenizer_folder).encode(text)
    stream = ours(tokenizer_folder).stream()
    pieces = [*map(stream.push, ids), stream.finish()]
    assert "".join(pieces) == ours(tokenizer_folder).decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


HIGH_BYTES, LETTERS = st.integers(6 + 0x80, 6 + 0xFF), st.integers(6 + 0x100, 297)


@EXAMPLES
@given(ids=st.lists(HIGH_BYTES | LETTERS, max_size=60))
def test_broken_fallback_bytes_do_no_harm_to_the_text_around(byte_fallback: Path, ids: list[int]) -> None:
    stream = ours(byte_fallback).stream()
    pieces = "".join([*map(stream.push, ids), stream.finish()])
    whole = ours(byte_fallback).decode(ids)
    assert pieces == whole or "\ufffd" in whole
    assert pieces.encode("ascii", "ignore") == whole.encode("ascii", "ignore")


def test_a_stream_takes_no_longer_as_the_text_grows(byte_fallback: Path) -> None:
    stream = ours(byte_fallback).stream()
    letters = ours(byte_fallback).encode("a" * 500)[1:501]
    broken = [6 + 0xFF] * 500
    for ids in (letters, broken):
        longest = 0
        for id in ids:
            stream.push(id)
            longest = max(longest, len(stream._window))
        assert longest <= 2 * stream.LONGEST_CHARACTER
    begun = time.perf_counter()
    stream.finish()
    assert time.perf_counter() - begun < 0.1
