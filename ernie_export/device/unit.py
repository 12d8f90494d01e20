"""The systemd units of the service that runs the active bundle, and the file that says how it is restarted."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from string import Template

from ernie_export import atomic
from ernie_export.device.rules import SERVICE
from ernie_export.device.service import Service
from ernie_export.errors import UserError

TEMPLATE = Path(__file__).with_name("ernie.service")
SETTLE = Path(__file__).with_name("ernie-settle.service")


def write(
    unit: Path, root: Path, program: str, ready: str, within: float, replace: bool = False
) -> list[Path]:
    """Write the unit, the one beside it that settles what was cut off, and ROOT/service.toml; their paths.

    Args:
        program: a command line as ExecStart takes it, its program an absolute path.
        ready: a command that ends with 0 as soon as the service answers.

    Raises:
        UserError: a command cannot be used, or one of the files stands there and says something else.
    """
    root = root.absolute()
    if not program.startswith("/") or "\n" in program:
        raise UserError(f"{program!r} cannot be started", "Give one line that begins with an absolute path.")
    if unit.suffix != ".service":
        raise UserError(f"{unit} is no name of a service", "Name a file that ends with .service.")
    try:
        asked = shlex.split(ready)
    except ValueError as error:
        raise UserError(f"{ready!r} is no command ({error})", "Mend its quotes.") from error
    if not asked:
        raise UserError("The command that asks whether it is ready is empty", "Give one with --ready.")
    service = Service(restart=["systemctl", "restart", unit.name], ready=asked, within=within)
    python = shlex.quote(sys.executable).replace("%", "%%")
    settles = f"{python} -m ernie_export device settle --root"
    texts = {
        unit: _unit(TEMPLATE, root, program=program),
        unit.with_name(f"{unit.stem}-settle.service"): _unit(SETTLE, root, settles=settles, unit=unit.name),
        root / SERVICE: _toml(service),
    }
    for path, text in texts.items():
        if not replace and path.exists() and path.read_text() != text:
            raise UserError(f"{path} says something else", "Name another file, or add --replace.")
    root.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        atomic.write(path, text.encode())
    return list(texts)


def _unit(template: Path, root: Path, **words: str) -> str:
    # A percent sign begins one of systemd's specifiers; those of the program are the user's own.
    return Template(template.read_text()).substitute(root=str(root).replace("%", "%%"), **words)


def _toml(service: Service) -> str:
    # A list of strings and a number are the same in JSON and in TOML.
    fields = service.model_dump()
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
