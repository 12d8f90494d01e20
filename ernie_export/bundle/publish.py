"""Giving a finished bundle its place, whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from ernie_export import atomic
from ernie_export.errors import UserError


def publish(partial: Path, final: Path, replace: bool = False) -> None:
    """Move the finished folder `partial` to `final`, both on one file system, whole or not at all.

    After a kill, `final` is the old bundle or the new one; the next call removes what is left over.
    Where the system cannot exchange two folders at once, there is a moment without `final`: a kill in
    it leaves the old bundle beside, and the next call puts it back first.

    Raises:
        UserError: `final` exists, and `replace` is not given or it is no folder.
    """
    aside = final.with_name(f".{final.name}.old")
    if aside.exists() and not final.exists():
        os.rename(aside, final)
    shutil.rmtree(aside, ignore_errors=True)
    if os.path.lexists(final) and (not replace or final.is_symlink() or not final.is_dir()):
        raise UserError(f"{final} exists", "Name another folder, or remove this one.")
    for path in [*partial.rglob("*"), partial]:
        atomic.sync(path)
    if not final.exists():
        os.rename(partial, final)
    elif _exchange(partial, final):
        os.rename(partial, aside)
    else:
        os.rename(final, aside)
        os.rename(partial, final)
    atomic.sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places at one instant; False where this system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
