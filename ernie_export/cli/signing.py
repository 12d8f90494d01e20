"""`sign`, and what `verify` says of a signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ernie_export.cli.terminal import terminal
from ernie_export.errors import UserError

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that `build` wrote.")]


def sign(
    bundle: BundleFolder,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A private key: PEM, on the curve P-256, P-384 or P-521."),
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the key's password, if it has one.")
    ] = None,
    sigstore: Annotated[
        bool,
        typer.Option("--sigstore", help="Without a key: as who logs in, or as the CI job; needs a network."),
    ] = False,
) -> None:
    """Sign a bundle: its user can then check who stands behind it.

    The signature, OpenSSF's model signing, goes into the bundle and travels with it.
    """
    from ernie_export.distribute.signing import sign

    if (key is None) != sigstore:
        raise UserError(
            "Who signs?" if key is None else "--key and --sigstore are both given",
            "Give --key FILE, or --sigstore; `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` "
            "makes a key.",
        )
    password = password_file.read_text().rstrip("\n") if password_file else None
    with terminal.progress() as progress:
        sign(bundle, key, password, progress)
    terminal.show(f"{bundle} is signed by {'sigstore' if key is None else key}")


def signed_by(bundle: Path, policy: Path | None, public_key: Path | None) -> str:
    """ ", signed by NAME", or nothing where nobody asks."""
    from ernie_export.distribute.policy import Policy
    from ernie_export.distribute.signing import signer_of

    if policy is None and public_key is None:
        return ""
    if policy and public_key:
        raise UserError("--policy and --public-key are both given", "Give one of them.")
    rules = Policy.read(policy) if policy else Policy.of_key(public_key) if public_key else Policy()
    signer = signer_of(bundle, rules, verified=True)
    return f", signed by {signer}" if signer else ", not signed, which the policy allows"
