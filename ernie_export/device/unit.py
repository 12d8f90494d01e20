"""The systemd unit of the service that runs the active bundle, and the file that says how it is restarted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from string import Template

from ernie_export import atomic
from ernie_export.device.service import Service
from ernie_export.errors import UserError

TEMPLATE = Path(__file__).with_name("ernie.service")


def write(unit: Path, root: Path, program: str, ready: str, within: float, replace: bool = False) -> Path:
    """Write the unit, and ROOT/service.toml beside the bundles; the latter's path.

    Args:
        program: a command line as ExecStart takes it, its program an absolute path.
        ready: a command that ends with 0 as soon as the service answers.

    Raises:
        UserError: a command cannot be used, or one of the two files stands there and says something else.
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
    told = root / "service.toml"
    texts = {unit: _unit(root, program), told: _toml(service)}
    for path, text in texts.items():
        if not replace and path.exists() and path.read_text() != text:
            raise UserError(f"{path} says something else", "Name another file, or add --replace.")
    root.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        atomic.write(path, text.encode())
    return told


def _unit(root: Path, program: str) -> str:
    # A percent sign begins one of systemd's specifiers; those of the program are the user's own.
    return Template(TEMPLATE.read_text()).substitute(root=str(root).replace("%", "%%"), program=program)


def _toml(service: Service) -> str:
    # A list of strings and a number are the same in JSON and in TOML.
    fields = service.model_dump()
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
