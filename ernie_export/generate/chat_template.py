"""The Jinja template that turns a conversation into text, rendered as transformers renders it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ernie_export import regular_file
from ernie_export.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Template


class ChatTemplate:
    def __init__(self, source: str, named_tokens: dict[str, str]):
        """`named_tokens` are variables of the template: `bos_token`, `sep_token`, …

        Raises:
            UserError: `source` is no template.
        """
        from jinja2 import TemplateSyntaxError

        from ernie_export.generate.template_limits import limited

        try:
            with limited():  # what is constant in a template is computed here
                self._template = _compile(source)
        except TemplateSyntaxError as error:
            raise UserError(
                f"The chat template is broken in line {error.lineno} ({error.message})",
                "Fetch the file again.",
            ) from error
        except Exception as error:  # it is foreign code
            raise UserError(
                f"The chat template is broken ({_said(error)})", "Fetch the file again."
            ) from error
        self._named_tokens = named_tokens

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any], named_tokens: dict[str, str]) -> ChatTemplate | None:
        """The file chat_template.jinja, or else what tokenizer_config.json holds."""
        try:
            source: Any = regular_file.read(folder / "chat_template.jinja").decode("utf-8")
        except FileNotFoundError:
            source = config.get("chat_template")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{folder / 'chat_template.jinja'} is not UTF-8 text (byte {error.start})",
                "Fetch the file again.",
            ) from error
        except OSError as error:
            raise UserError(
                f"{folder / 'chat_template.jinja'} cannot be read ({error.strerror})", "Fetch the file again."
            ) from error
        try:
            if isinstance(source, list):
                source = {entry["name"]: entry["template"] for entry in source}.get("default")
            if not isinstance(source, str | None):
                raise TypeError(type(source))
        except (LookupError, TypeError) as error:
            raise UserError(
                f"{folder / 'tokenizer_config.json'}: chat_template is {json.dumps(source)[:60]}, no template",
                "Fetch the file again.",
            ) from error
        return None if source is None else cls(source, named_tokens)

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """The text of the conversation, with the beginning of an answer if asked for.

        Raises:
            UserError: the template refuses the conversation, or takes more time or memory than it may.
        """
        from ernie_export.generate.template_limits import TEXT, OverLimit, limited

        variables = {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._named_tokens,
        }
        length = 0
        pieces = []
        try:
            with limited():
                for piece in self._template.generate(variables):
                    length += len(piece)
                    if length > TEXT:
                        raise OverLimit("it says more than any context holds")
                    pieces.append(piece)
        except Exception as error:  # it is foreign code, and does with a value what cannot be done
            raise UserError(
                f"The chat template refuses this conversation ({_said(error)})", "Say it in other turns."
            ) from error
        return "".join(pieces)


def _said(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    return str(error) or type(error).__name__


def _compile(source: str) -> Template:
    """A template comes with a download, so it runs in a sandbox."""
    from jinja2 import TemplateError

    from ernie_export.generate.template_limits import BoundedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(source)
