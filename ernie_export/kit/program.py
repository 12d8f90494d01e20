"""The command line of a kit: `python3 kit.pyz check`, `python3 kit.pyz build`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import ernie_export
from ernie_export import failure
from ernie_export.errors import UserError
from ernie_export.failure import INTERRUPTED
from ernie_export.kit.build import Built, Settings, build
from ernie_export.kit.contents import Contents
from ernie_export.kit.fitting import context_of, needs, require_fit
from ernie_export.progress import Silent, Step
from ernie_export.readable import size

DEFECT = "This is a defect of ernie-export, or a kit that it did not make"


def main(arguments: Sequence[str]) -> int:
    """Its exit code: 0 done, 1 the work failed, 2 a mistake, 130 interrupted."""
    debug = "--debug" in arguments
    try:
        _run(_parser().parse_args(arguments))
        return 0
    except SystemExit as ended:
        return int(ended.code or 0)
    except KeyboardInterrupt:
        print("interrupted: run the same again, and it goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except BaseException as exception:
        if debug:
            traceback.print_exc()
        error = failure.as_error(exception, DEFECT)
        print(failure.line(error), file=sys.stderr)
        return error.exit_code


def _run(asked: argparse.Namespace) -> None:
    kit = asked.kit or _own_folder()
    if asked.command == "check":
        _check(kit, asked.output or beside(kit), asked.context)
        return
    settings = Settings(asked.context, asked.threads, asked.max_token_ms)
    built = build(kit, asked.output or beside(kit), settings, Lines(), _say, asked.replace)
    _show(built)


def _check(kit: Path, output: Path, asked: int | None) -> None:
    contents = Contents(kit.absolute())
    contents.require_whole(Lines())
    context = context_of(contents, asked)
    here = require_fit(contents, output.absolute(), context)
    _facts(
        [
            ("kit", f"{contents.target}, {contents.manifest['recipe']}, {contents.digest[:12]}"),
            ("here", f"{here.device or here.architecture}, {contents.module} {here.version}"),
            ("memory", f"{size(needs(contents, context))} with {context:,} tokens of context: there is room"),
            ("next", f"python3 {sys.argv[0]} build"),
        ]
    )


def _show(built: Built) -> None:
    report = built.report
    speed: dict[str, Any] = report.get("speed") or {}
    rates = [
        f"{each['tokens_per_second']:,.1f} at {each['context']:,} tokens" for each in speed.get("decode", [])
    ]
    _facts(
        [
            ("verdict", report["verdict"]),
            ("bundle", f"{built.bundle}{' (stood there already)' if built.reused else ''}"),
            ("claims", ", ".join(f"{each['claim']}: {each['where']}" for each in report["claims"][-3:])),
            ("tokens/s", "; ".join(rates) or "not measured"),
            ("report", str(built.bundle / "report.json")),
        ]
    )


def _facts(rows: list[tuple[str, str]]) -> None:
    wide = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{wide}}  {value}")


def _say(message: str) -> None:
    print(message, file=sys.stderr)


class Lines:
    """A line on stderr for each step: what it is, and how long it took."""

    @contextmanager
    def step(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
        begun = time.perf_counter()
        print(f"{title} …", end="", file=sys.stderr, flush=True)
        try:
            with Silent().step(title) as inner:
                yield inner
        except BaseException:
            print(file=sys.stderr)
            raise
        print(f" {time.perf_counter() - begun:.1f} s", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message[:1].upper() + message[1:], f"See `{self.prog} --help`.")


def _parser() -> _Parser:
    parser = _Parser(
        prog="kit.pyz",
        description="Builds this kit's engine on the device that it is for, checks and measures it.",
    )
    parser.add_argument("--version", action="version", version=f"ernie-export {ernie_export.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("check", "Does the kit suit this device: runtime, memory, disk."),
        ("build", "Build the engine, ask it, measure it, and seal the bundle; an interrupted build goes on."),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "kit", nargs="?", type=Path, help="the kit's folder; without it, where this file lies"
        )
        command.add_argument("--output", type=Path, help="the bundle to write; without it, KIT-built")
        command.add_argument("--context", type=_count, metavar="N", help="make room for N tokens, not 4,096")
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
        if name == "build":
            command.add_argument(
                "--threads", type=_count, metavar="N", help="of the runtime; without it, all cores"
            )
            command.add_argument("--max-token-ms", type=float, metavar="MS", help="the most a token may take")
            command.add_argument("--replace", action="store_true", help="replace what was built there before")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _own_folder() -> Path:
    """Of the kit that this program lies in."""
    container = Path(ernie_export.__file__).parents[1]
    if not container.is_file():
        raise UserError("No kit is named", "Name the kit's folder.")
    return container.parent


def beside(kit: Path) -> Path:
    kit = kit.absolute()
    return kit.with_name(f"{kit.name}-built")
