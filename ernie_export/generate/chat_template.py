"""The Jinja template that turns a conversation into text, rendered as transformers renders it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

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

        try:
            self._template = _compile(source)
        except TemplateSyntaxError as error:
            raise UserError(
                f"The chat template is broken in line {error.lineno} ({error.message})",
                "Fetch the file again.",
            ) from error
        self._named_tokens = named_tokens

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any], named_tokens: dict[str, str]) -> ChatTemplate | None:
        """The file chat_template.jinja, or else what tokenizer_config.json holds."""
        try:
            source: Any = (folder / "chat_template.jinja").read_text("utf-8")
        except FileNotFoundError:
            source = config.get("chat_template")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{folder / 'chat_template.jinja'} cannot be read ({error})", "Fetch the file again."
            ) from error
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        return None if source is None else cls(source, named_tokens)

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """The text of the conversation, with the beginning of an answer if asked for.

        Raises:
            UserError: the template refuses the conversation.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._named_tokens,
            )
        except (TemplateError, TypeError) as error:  # TypeError: it does with a value what cannot be done
            raise UserError(
                f"The chat template refuses this conversation ({error})", "Say it in other turns."
            ) from error


def _compile(source: str) -> Template:
    """A template comes with a download, so it runs in a sandbox."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(source)
