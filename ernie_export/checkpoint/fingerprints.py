"""The digests of checkpoints that were read before, one file each in the user's cache folder.

Losing this folder costs time, nothing else: what cannot be read is ignored and made anew, and what
cannot be written is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from ernie_export import atomic


def cache_folder() -> Path:
    """ERNIE_EXPORT_CACHE, or the system's folder for what a user's programs can make again."""
    return Path(os.environ.get("ERNIE_EXPORT_CACHE") or platformdirs.user_cache_dir("ernie-export"))


def _file(identity: str) -> Path:
    return cache_folder() / "fingerprints" / f"{identity}.json"


def recall(identity: str, names: Iterable[str]) -> dict[str, str]:
    """Tensor → SHA-256 as remembered for this identity; empty unless the file is whole."""
    try:
        stored = json.loads(_file(identity).read_bytes())
        digests = stored["digests"]
        whole = stored["sha256"] == _sha256(digests) and set(digests) == set(names)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return digests if whole else {}


def remember(identity: str, digests: dict[str, str]) -> None:
    """Keep the digests for `recall`, if the folder can be written."""
    path = _file(identity)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {"digests": digests, "sha256": _sha256(digests)}
        atomic.write(path, json.dumps(whole, sort_keys=True).encode())  # whichever thread made which first


def _sha256(digests: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
