"""`device`: bundles on this device, one of them active."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.registry import CaFile, PlainHttp
from ernie_export.cli.terminal import facts, table, terminal
from ernie_export.readable import size

if TYPE_CHECKING:
    from ernie_export.device.place import Installed, Place

ROOT = "/var/lib/ernie-export"
Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]
Root = Annotated[
    Path, typer.Option(metavar="DIR", envvar="ERNIE_EXPORT_ROOT", help="Where this device keeps its bundles.")
]
ServiceFile = Annotated[
    Path | None,
    typer.Option(
        "--service",
        metavar="FILE",
        help="The service to restart; without one, ROOT/service.toml if it is there.",
    ),
]
Observe = Annotated[
    float,
    typer.Option(
        metavar="S", min=0, max=86400, help="Seconds for which the service has to stay ready; else: back."
    ),
]

app = typer.Typer(
    name="device", help="Bundles on this device: install, switch, roll back.", no_args_is_help=True
)


@app.command()
def install(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="oci://… or the folder of a bundle.")],
    root: Root = Path(ROOT),
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Whose signatures are taken; without one, ROOT/policy.toml."),
    ] = None,
    service: ServiceFile = None,
    max_token_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS", min=0.001, help="The most a token may take here; in place of the policy's."
        ),
    ] = None,
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    observe: Observe = 0,
    json: Json = False,
) -> None:
    """Fetch a bundle, check it, try it, and make it the active one.

    Until it is tried nothing changes; if the service does not become ready with it, or does not stay so while it
    is observed, the earlier one is active again. What is on this device already does not travel.
    """
    from ernie_export.device.install import Offer, install
    from ernie_export.device.rules import policy_of, service_of

    place = _place(root)
    rules, told = policy_of(place, policy), service_of(place, service)
    if max_token_ms is not None:
        rules = rules.model_copy(update={"max_token_ms": max_token_ms})
    offer = Offer.find(source, ca_file, plain_http)
    with terminal.progress() as progress:
        installed = install(offer, place, rules, told, progress, observe)
    _show(place, installed, json)


@app.command()
def status(root: Root = Path(ROOT), json: Json = False) -> None:
    """Show what is installed, and which one is active."""
    _show_status(_place(root), json)


@app.command()
def settle(root: Root = Path(ROOT), service: ServiceFile = None, json: Json = False) -> None:
    """Finish a switch that a loss of power cut off, or take it back.

    The service is told once more of the bundle that was just made active; if it does not become ready, the earlier
    one is active again. Where nothing was cut off, nothing happens: so it may run at every start of the device, as
    the unit does that `device unit` writes beside the service's.
    """
    from ernie_export.device.install import settle
    from ernie_export.device.rules import service_of

    place = _place(root)
    told = service_of(place, service)
    with terminal.progress() as progress, place.held():
        settle(place, told, progress)
    _show_status(place, json)


@app.command()
def rollback(root: Root = Path(ROOT), service: ServiceFile = None, json: Json = False) -> None:
    """Make the generation before the active one the active one; the service is told."""
    from ernie_export.device.install import rollback
    from ernie_export.device.rules import service_of

    place = _place(root)
    _show(place, rollback(place, service_of(place, service)), json)


@app.command()
def gc(root: Root = Path(ROOT)) -> None:
    """Remove what is neither active nor the one before it."""
    place = _place(root)
    with place.held():
        freed = place.collect()
    terminal.show(f"{size(freed)} freed")


@app.command(hidden=True)
def receive(root: Root = Path(ROOT)) -> None:
    """Install the bundle that `ernie-export deploy` sends over ssh, which runs this on the device."""
    from ernie_export.cli.failures import as_error
    from ernie_export.device.receive import Line, failed, receive
    from ernie_export.device.rules import policy_of, service_of

    line, place = Line.of_process(), _place(root)
    try:
        receive(line, place, lambda: (policy_of(place), service_of(place)))
    except Exception as exception:
        if error := as_error(exception):
            line.tell(failed(place, error))
        raise


@app.command()
def unit(
    program: Annotated[
        str, typer.Argument(metavar="COMMAND", help="What runs the bundle in $ERNIE_EXPORT_BUNDLE: one line.")
    ],
    ready: Annotated[
        str, typer.Option(metavar="COMMAND", help="Ends with 0 as soon as the service answers.")
    ],
    within: Annotated[float, typer.Option(metavar="S", min=1, help="Seconds it may take to be ready.")] = 120,
    root: Root = Path(ROOT),
    unit: Annotated[Path, typer.Option(metavar="FILE", help="The systemd unit to write.")] = Path(
        "/etc/systemd/system/ernie.service"
    ),
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace files that say something else.")
    ] = False,
) -> None:
    """Write systemd's units of the service, and ROOT/service.toml.

    The latter says how the service is restarted, and when it is ready. A second unit settles, when the device starts,
    what a loss of power cut off (`device settle`).
    """
    from ernie_export.device.unit import write

    written = write(unit, root, program, ready, within, replace)
    units = " ".join(path.name for path in written if path.suffix == unit.suffix)
    terminal.show(
        f"wrote {', '.join(map(str, written))}; next: systemctl daemon-reload && systemctl enable --now {units}"
    )


def _place(root: Path) -> Place:
    from ernie_export.device.place import Place

    return Place(root)


def _show(place: Place, installed: Installed, json: bool) -> None:
    from ernie_export.device.status import generation

    if json:
        terminal.emit(generation(place, installed))
        return
    rows = [
        ("active", f"generation {installed.number}"),
        ("bundle", os.fspath(place.current / "bundle")),
        ("from", installed.source),
        ("signed by", installed.signer or "nobody, which the policy allows"),
    ]
    terminal.show(facts(rows))


def _show_status(place: Place, json: bool) -> None:
    from ernie_export.device import status as device_status

    found = device_status.status(place)
    if json:
        terminal.emit(found)
        return
    if not found.generations and not found.damaged:
        terminal.show(f"nothing is installed in {place.root}")
        return
    rows = [
        (
            f"{each.number}{' *' if each.number == found.active else ''}",
            each.checkpoint,
            each.recipe,
            each.built,
            each.signer or "nobody",
            each.refused or f"{each.source}{f' (kit {each.kit[:12]}, built here)' if each.kit else ''}",
        )
        for each in found.generations
    ]
    rows += [
        (f"{number}{' *' if number == found.active else ''}", "", "", "", "", "its record is damaged")
        for number in found.damaged
    ]
    terminal.show(table(("generation", "checkpoint", "recipe", "built", "signed by", "from"), rows))
    if found.active in found.damaged:
        terminal.say(f"generation {found.active} is active, and damaged: install its bundle again")
    if found.pending is not None:
        terminal.say(
            f"nobody has seen the service ready with generation {found.pending} yet: an installation is under way, or "
            "was cut off; `ernie-export device settle` then looks, and goes back if need be"
        )
