"""Text to token ids and back, as transformers' fast tokenizers do it, without transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_export import regular_file
from ernie_export.checkpoint.json_file import read_object
from ernie_export.errors import UserError
from ernie_export.generate.chat_template import ChatTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TRIAL = "The list is empty."
"""What any tokenizer can encode; one that contradicts itself is found by it."""
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TextTokenizer:
    """`tokenizer.json` with what `tokenizer_config.json` and the chat template add to it."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, stop_ids: frozenset[int]):
        self._tokenizer = tokenizer
        self._template = template
        self.special_ids = frozenset(
            id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self.stop_ids = stop_ids | self._turn_closer()
        """The tokens that end an answer: the model's end tokens, and what closes a turn of a chat."""

    @classmethod
    def read(cls, folder: Path) -> TextTokenizer:
        """The tokenizer of a checkpoint or a bundle.

        Raises:
            UserError: a file is missing or broken.
        """
        config = _optional(folder / "tokenizer_config.json")
        try:
            named = {name: _content(config[name]) for name in NAMED_TOKENS if config.get(name) is not None}
            extra = _extra_tokens(config)
        except ValueError as error:
            raise UserError(f"{folder / 'tokenizer_config.json'}: {error}", "Fetch the file again.") from None
        tokenizer = _read_tokenizer(folder / "tokenizer.json", [*named.values(), *extra])
        return cls(tokenizer, ChatTemplate.read(folder, config, named), _end_ids(folder))

    def require_fit(self, vocab_size: int) -> None:
        """That a model of so many tokens can be fed all that this tokenizer makes, and be talked with.

        Raises:
            UserError: a token is outside the vocabulary, or the chat template does not take a question.
        """
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        for what, id in (("the tokenizer has", highest), ("an end token is", max(self.stop_ids, default=0))):
            if id >= vocab_size:
                raise UserError(
                    f"{what} token {id}, which is outside the model's vocabulary of {vocab_size}",
                    "Take the tokenizer's files and the weights from one release.",
                )
        if self._template is not None:
            try:
                self.chat([{"role": "user", "content": "question"}])
            except UserError as error:
                raise UserError(
                    f"{error.cause}, which is a plain question", "Fetch the chat template again."
                ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that tokenizer.json puts around a text (ERNIE's: none).

        Raises:
            UserError: the text holds half of a surrogate pair, as undecodable bytes do, or tokenizer.json
                has no tokens for it.
        """
        return self._encode(text, add_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        with refused("The tokenizer cannot decode what the engine said"):
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the next answer begins.

        Raises:
            UserError: there is no chat template, or it refuses this conversation.
        """
        if self._template is None:
            raise UserError("This model has no chat template", "Use `ernie-export generate` with --prompt.")
        rendered = self._template.render(messages, add_generation_prompt=True)
        return self._encode(rendered, add_special_tokens=False)

    def stream(self) -> TextStream:
        return TextStream(self)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if _has_half_a_pair(text):  # a command line or a file that was not UTF-8
            raise UserError("The text is not valid Unicode", "Give it as UTF-8.")
        with refused("The tokenizer cannot encode this text"):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _turn_closer(self) -> frozenset[int]:
        """The special token that the chat template puts right behind an answer, if it does so."""
        if self._template is None:
            return frozenset()
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            rendered = self._template.render(messages, add_generation_prompt=False)
        except UserError:
            return frozenset()
        _, _, behind = rendered.rpartition("answer")
        return frozenset(self._encode(behind, add_special_tokens=False)[:1]) & self.special_ids


class TextStream:
    """Decodes token by token; what it has given away stands, and is never half a character."""

    LONGEST_CHARACTER = 4  # bytes, and so tokens at most

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._window: list[int] = []  # a few tokens already shown, as decoders look back, and the newest
        self._context = 0  # tokens of the window that stood before the last cut
        self._shown = 0  # characters of the window's text already given away

    def push(self, id: int) -> str:
        """The text that is certain now that `id` has come. The cost does not grow with the text."""
        if id in self._tokenizer.special_ids:
            return ""
        self._window.append(id)
        text = self._tokenizer.decode(self._window)
        # Decoders write one U+FFFD for each byte, or for all bytes, of a character that is not whole yet;
        # some do so for whole characters before it, too. What is still broken after four tokens stays broken.
        held = len(text) - len(text.rstrip("\ufffd"))
        hopeless = len(self._window) - self._context >= self.LONGEST_CHARACTER
        if hopeless:
            held = min(held, self.LONGEST_CHARACTER - 1)
        piece = text[self._shown : len(text) - held]
        self._shown += len(piece)
        if hopeless or not held:
            del self._window[: self._context]
            self._context = len(self._window)
            self._shown = len(self._tokenizer.decode(self._window)) - held
        return piece

    def finish(self) -> str:
        """What was held back, broken as it is."""
        rest = self._tokenizer.decode(self._window)[self._shown :]
        self._shown += len(rest)
        return rest


@contextmanager
def refused(cause: str, remedy: str = "Fetch tokenizer.json again.") -> Iterator[None]:
    """The library raises bare Exception, and panics where a tokenizer.json contradicts itself."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # no Exception, and its class cannot be imported
        if not panic and (isinstance(error, MemoryError) or not isinstance(error, Exception)):
            raise
        raise UserError(f"{cause} ({error})", remedy) from error


@contextmanager
def _without_stderr() -> Iterator[None]:
    """A panic writes to the process's own stderr, past sys.stderr."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _read_tokenizer(path: Path, wanted: list[str]) -> Tokenizer:
    """The tokenizer in a file, with the tokens that are `wanted` beside those it has."""
    from tokenizers import Tokenizer

    if not path.exists():
        raise UserError(
            f"{path.parent} holds no tokenizer.json",
            "Write one with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    try:
        text = regular_file.read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})", "Fetch the file again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "Fetch the file again.") from error
    with refused(f"{path} is no tokenizer", "Fetch the file again."), _without_stderr():
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _add_missing_tokens(tokenizer, wanted)
        tokenizer.decode(tokenizer.encode(TRIAL).ids)
    return tokenizer


def _extra_tokens(config: dict[str, Any]) -> list[str]:
    """The special tokens beside the named ones; ValueError where they are no tokens."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(extra, (list, dict)):
        raise ValueError(f"the extra special tokens are {extra!r}, neither a list nor an object")
    return [_content(token) for token in (extra if isinstance(extra, list) else extra.values())]


def _add_missing_tokens(tokenizer: Tokenizer, wanted: list[str]) -> None:
    """tokenizer_config.json may name special tokens that tokenizer.json does not know as such."""
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([AddedToken(token, special=True) for token in wanted if token not in known])


def _end_ids(folder: Path) -> frozenset[int]:
    """`eos_token_id`, one or several, of generation_config.json or else config.json."""
    for name in ("generation_config.json", "config.json"):
        ids = _optional(folder / name).get("eos_token_id")
        if ids is not None:
            listed = ids if isinstance(ids, list) else [ids]
            if not all(type(id) is int and id >= 0 for id in listed):
                raise UserError(
                    f"{folder / name}: eos_token_id is {ids!r}", "Write a token id, or a list of them."
                )
            return frozenset(listed)
    return frozenset()


def _optional(path: Path) -> dict[str, Any]:
    """The JSON object in the file; an empty one where there is no such file."""
    return read_object(path) if path.exists() else {}


def _content(token: Any) -> str:
    """A token stands in tokenizer_config.json as its text, or as an object that holds it; else ValueError."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or _has_half_a_pair(content):
        raise ValueError(f"{json.dumps(token)[:60]} is no token")
    return content


def _has_half_a_pair(text: str) -> bool:
    """Whether the text holds half of a surrogate pair, which no UTF-8 can say."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
