"""What the device's owner has laid down beside the bundles: ROOT/policy.toml and ROOT/service.toml."""

from __future__ import annotations

import stat
from pathlib import Path

from ernie_export.device.place import Place
from ernie_export.device.service import Service
from ernie_export.distribute.policy import Policy
from ernie_export.errors import UserError

POLICY, SERVICE = "policy.toml", "service.toml"


def policy_of(place: Place, given: Path | None = None) -> Policy:
    """The policy that was named, else the device's own; one that names nobody takes nothing.

    Raises:
        UserError: there is none, it is wrong, or anybody could have written it or a file that it names.
    """
    path = given or place.root / POLICY
    if given is None and not path.exists():
        raise UserError(
            f"There is no policy in {path}, so nobody's bundles are taken",
            "Write one with the signers you trust (or `unsigned = true`), or name one with --policy.",
        )
    policy = Policy.read(path)
    require_guarded(path, *(file for signer in policy.signers for file in signer.files))
    return policy


def service_of(place: Place, given: Path | None = None) -> Service | None:
    """The service that was named, else the device's own; None: there is none.

    Raises:
        UserError: it is wrong, or anybody could have written it: it says what is run here.
    """
    path = given or place.root / SERVICE
    if given is None and not path.exists():
        return None
    service = Service.read(path)
    require_guarded(path)
    return service


def require_guarded(*paths: Path) -> None:
    """Raises UserError where everybody can write one of the files, or its folder."""
    for path in paths:
        if path.stat().st_mode & stat.S_IWOTH:
            raise UserError(f"Everybody can write {path}", f"Take that away: chmod o-w {path}")
        mode = path.parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise UserError(
                f"Everybody can replace {path}", f"Take that away: chmod o-w {path.absolute().parent}"
            )
