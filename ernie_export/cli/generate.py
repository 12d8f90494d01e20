"""`generate`: how a bundle goes on from a prompt, or from several at once."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.inspect import Json
from ernie_export.cli.terminal import dim, terminal
from ernie_export.cli.validate import BundleFolder
from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.generate.generator import Generation
    from ernie_export.generate.tokenizer import TextTokenizer

MaxTokens = Annotated[int, typer.Option(metavar="N", help="Most tokens of an answer.")]
Temperature = Annotated[
    float, typer.Option(metavar="X", help="0 takes the likeliest token, above it is by chance.")
]
TopK = Annotated[int, typer.Option(metavar="K", help="By chance among the K likeliest tokens; 0: all.")]
TopP = Annotated[
    float, typer.Option(metavar="P", help="By chance among the likeliest that reach this probability.")
]
Seed = Annotated[int, typer.Option(metavar="S", help="The same seed gives the same tokens.")]


def generate(
    bundle: BundleFolder,
    prompt: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Several make a batch.")] = None,
    prompt_ids: Annotated[
        list[str] | None,
        typer.Option(metavar="1,2,3", help="Token ids in place of text; several make a batch."),
    ] = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Continue one prompt or several.

    JSON is an object for one prompt, and {"results": [object, …]} for several.
    """
    from ernie_export.engine.open import open_engine
    from ernie_export.generate.generator import generate as run
    from ernie_export.generate.sampling import Sampling
    from ernie_export.generate.tokenizer import TextTokenizer

    if bool(prompt) == bool(prompt_ids):
        raise UserError(
            "There must be either --prompt or --prompt-ids", "See `ernie-export generate --help`."
        )
    sampling = Sampling(temperature, top_k, top_p, seed)
    given = [_ids(text) for text in prompt_ids or []]
    engine = open_engine(bundle)
    tokenizer = TextTokenizer.read(bundle)
    prompts = given or [tokenizer.encode(text) for text in prompt or []]

    stream = tokenizer.stream() if len(prompts) == 1 and not json else None
    begun = time.monotonic()
    results = run(
        engine,
        prompts,
        max_tokens,
        sampling,
        tokenizer.stop_ids,
        (lambda _, token: terminal.write(stream.push(token))) if stream else None,
    )
    seconds = time.monotonic() - begun

    if json:
        _emit(results, tokenizer)
    elif stream:
        terminal.write(stream.finish() + "\n")
    else:
        for title, result in zip(prompt or prompt_ids or [], results, strict=True):
            terminal.show(dim(f"› {title}"))
            terminal.write(tokenizer.decode(result.answer_ids) + "\n")
    if sys.stderr.isatty():
        tokens = sum(len(result.token_ids) for result in results)
        terminal.say(f"{tokens} tokens, {tokens / seconds:.1f} a second")


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--prompt-ids {text!r} is no list of token ids", "Write it as 1,2,3.") from error


def _emit(results: list[Generation], tokenizer: TextTokenizer) -> None:
    from ernie_export.cli.outputs import BatchOutput, GenerateOutput

    outputs = [
        GenerateOutput(
            prompt_ids=result.prompt_ids,
            token_ids=result.token_ids,
            text=tokenizer.decode(result.answer_ids),
            finish_reason=result.finish_reason,
        )
        for result in results
    ]
    terminal.emit(outputs[0] if len(outputs) == 1 else BatchOutput(results=outputs))
