"""`deploy`: a bundle onto devices, over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.inspect import Json
from ernie_export.cli.terminal import terminal
from ernie_export.cli.validate import BundleFolder
from ernie_export.errors import UserError, WorkError

if TYPE_CHECKING:
    from ernie_export.distribute.ssh_rollout import Deployed


def deploy(
    bundle: BundleFolder,
    to: Annotated[
        list[str],
        typer.Option(
            metavar="HOST", help="A device, [USER@]HOST[:PORT] as ssh knows it; again for the next."
        ),
    ],
    canary: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="The first so many before the others, and those only if all are well."
        ),
    ] = 0,
    observe: Annotated[
        float,
        typer.Option(
            metavar="S",
            min=0,
            max=86400,
            help="Seconds for which the canaries' services have to stay ready before the others begin.",
        ),
    ] = 0,
    at_once: Annotated[int, typer.Option(metavar="N", min=1, help="Devices at a time.")] = 32,
    root: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where the devices keep their bundles, if not in their usual place."
        ),
    ] = None,
    program: Annotated[
        str,
        typer.Option(metavar="COMMAND", help="What is run there, in shell's words: `sudo -n ernie-export`."),
    ] = "ernie-export",
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In place of ~/.ssh/config.")
    ] = None,
    json: Json = False,
) -> None:
    """Install a bundle on devices over ssh: for those without a registry.

    What a device has already does not travel. It checks, tries and switches there as `device install` does, by
    the device's own policy; one that fails changes nothing for the others. What was cut off goes on where it
    stopped when the command is run again.
    """
    from ernie_export.cli.deploy_table import summary, watching
    from ernie_export.distribute.ssh_destination import destinations
    from ernie_export.distribute.ssh_rollout import Rollout, Way
    from ernie_export.distribute.ssh_sender import Parcel

    hosts = destinations(to)
    if canary and canary >= len(hosts):
        raise UserError(
            f"--canary {canary} of {len(hosts)} leaves no device for later", "Name fewer, or more devices."
        )
    if observe and not canary:
        raise UserError(
            "--observe is for canaries, and there are none", "Name how many with --canary, or leave it out."
        )
    if ssh_config and not ssh_config.is_file():
        raise UserError(f"{ssh_config} is no file", "Name a configuration of ssh with --ssh-config.")
    parcel = Parcel.of(bundle)
    with watching(bundle, [host.text for host in hosts], canary) as watch:
        deployed = Rollout(parcel, hosts, Way(program, root, ssh_config), watch).run(canary, at_once, observe)
    if json:
        terminal.emit(deployed)
    else:
        terminal.show(summary(deployed))
    if deployed.failed:
        raise _refusal(deployed)


def _refusal(deployed: Deployed) -> WorkError:
    """What a roll-out that was no full success ends with."""
    failed = [host for host in deployed.failed if host.outcome == "failed"]
    first = failed[0]
    if len(deployed.failed) == 1:
        return WorkError(f"{first.host}: {first.cause}", first.remedy or "")
    names = ", ".join(host.host for host in failed)
    left_out = len(deployed.failed) - len(failed)
    more = f", and {left_out} were left out" if left_out else ""
    return WorkError(
        f"{len(failed)} of {len(deployed.hosts)} devices failed ({names}){more}",
        "The table says why; run the same again when it is mended: what has arrived does not travel twice.",
    )
