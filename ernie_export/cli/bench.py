"""`bench`: how fast a bundle is, and what holds it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.inspect import Json
from ernie_export.cli.terminal import facts, table, terminal
from ernie_export.errors import UserError
from ernie_export.readable import size

if TYPE_CHECKING:
    from ernie_export.bench.bench import Bench
    from ernie_export.bench.opening import Opened


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")],
    prefill: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Tokens of a prompt; may be repeated."),
    ] = None,
    decode: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Tokens in the cache while decoding; may be repeated."),
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens to decode at each length.")] = 32,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Times to feed each prompt.")] = 3,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of the runtime; a core each by default.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write plots of it, as a page to look at.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure prefill, decode, opening and memory, beside the bandwidth of this machine's memory."""
    from ernie_export import atomic
    from ernie_export.bench import page
    from ernie_export.bench.bench import bench

    if html and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise UserError(f"{html} cannot be written", "Name a file in a folder that is there.")
    with terminal.progress() as progress:
        measured = bench(bundle, progress, prefill, decode, tokens, repeat, threads)
    if html:
        atomic.write(html, page.render(measured))
    if json:
        terminal.emit(measured)
    else:
        _show(measured)


def _show(measured: Bench) -> None:
    opening = measured.opening
    bandwidth = f"{size(measured.bandwidth)}/s" if measured.bandwidth else "not measured: too little memory"
    rows: list[tuple[str, object]] = [
        ("bundle", f"{measured.bundle}, recipe {measured.recipe}"),
        ("machine", f"{measured.machine['processor']}, {measured.threads} threads"),
        ("bandwidth", bandwidth),
        ("opens warm", _opened(opening.warm)),
    ]
    if opening.cold and opening.reading is not None:
        rows.append(
            (
                "opens cold",
                f"{_opened(opening.cold)}; reading its {size(opening.bytes)} {opening.reading:.2f} s",
            )
        )
    rows.append(
        ("memory", f"{size(measured.memory.anonymous)} anonymous, {size(measured.memory.mapped)} mapped, "
         f"with a cache of {measured.cache:,} tokens")
    )  # fmt: skip
    terminal.show(facts(rows))
    terminal.show("")
    terminal.show(
        table(
            ("prefill", "tokens/s", "first token", "memory at most"),
            [
                (f"{row.tokens:,}", f"{row.tokens_per_second:,.1f}", f"{row.seconds:.3f} s",
                 f"{size(row.highest_anonymous)} anonymous")
                for row in measured.prefill
            ],
            right=(0, 1, 2),
        )
    )  # fmt: skip
    terminal.show("")
    terminal.show(
        table(
            ("decode at", "tokens/s", "a token", "reads", "", "of the bandwidth"),
            [
                (f"{row.context:,}", f"{row.tokens_per_second:,.1f}", f"{1000 * row.seconds:.2f} ms",
                 size(row.bytes), f"{size(row.bytes_per_second)}/s",
                 f"{row.share:.0%}" if row.share is not None else "-")
                for row in measured.decode
            ],
            right=(0, 1, 2, 3, 4, 5),
        )
    )  # fmt: skip


def _opened(opened: Opened) -> str:
    return f"{opened.seconds:.2f} s, {size(opened.after.anonymous)} anonymous"
