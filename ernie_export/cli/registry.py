"""`push` and `pull`: bundles in an OCI registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ernie_export.cli.inspect import Json
from ernie_export.cli.terminal import facts, terminal
from ernie_export.cli.validate import BundleFolder
from ernie_export.readable import size

Place = Annotated[
    str, typer.Argument(metavar="ADDRESS", help="oci://HOST/REPOSITORY, and :TAG or @sha256:DIGEST.")
]
CaFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Trust this CA of the registry, beside Docker's own certs.d."),
]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="The registry speaks HTTP without TLS.")]


def push(
    bundle: BundleFolder,
    address: Place,
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    json: Json = False,
) -> None:
    """Put a bundle into a registry.

    Files that the registry has already, from whatever bundle, do not travel. One that was cut off goes on
    where it stopped when it is run again. Passwords are those of `docker login`.
    """
    from ernie_export.distribute.address import Address
    from ernie_export.distribute.push import push
    from ernie_export.distribute.registry import Registry

    registry = Registry(Address.parse(address), ca_file, plain_http)
    with terminal.progress() as progress:
        pushed = push(bundle, registry, progress)
    if json:
        terminal.emit(pushed)
        return
    rows = [("address", pushed.address), ("sent", size(pushed.sent)), ("was there", size(pushed.there))]
    terminal.show(facts(rows))


def pull(
    address: Place,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the bundle that stands there.")] = False,
    ca_file: CaFile = None,
    plain_http: PlainHttp = False,
    json: Json = False,
) -> None:
    """Fetch a bundle from a registry, every byte checked.

    What the bundle that it replaces has already does not travel. One that was cut off goes on where it
    stopped when it is run again.
    """
    from ernie_export.distribute.address import Address
    from ernie_export.distribute.pull import pull
    from ernie_export.distribute.registry import Registry

    registry = Registry(Address.parse(address), ca_file, plain_http)
    with terminal.progress() as progress:
        pulled = pull(registry, output, replace, progress)
    if json:
        terminal.emit(pulled)
        return
    rows = [
        ("address", pulled.address),
        ("bundle", pulled.output),
        ("received", size(pulled.received)),
        ("was there", size(pulled.there)),
    ]
    terminal.show(facts(rows))
