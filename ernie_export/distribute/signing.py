"""Who stands behind a bundle: OpenSSF model signing over every file of it, kept in the bundle as model.sig."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_export import atomic
from ernie_export.bundle.files import SIGNATURE
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.verify import verify
from ernie_export.distribute.artifact import files_of
from ernie_export.distribute.policy import Policy, Signer
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Progress

if TYPE_CHECKING:
    from types import ModuleType

LARGEST = 16 << 20
"""Bytes of a signature: it lists every file."""


def sign(
    folder: Path, private_key: Path | None, password: str | None = None, progress: Progress | None = None
) -> None:
    """Sign a bundle, in place of a signature that it may have.

    `private_key`: PEM, an elliptic curve of NIST (P-256, P-384, P-521); None signs with sigstore, as who
    logs in or as the CI job that runs.

    Raises:
        UserError: the folder is no whole bundle, or the key cannot be used.
        WorkError: sigstore cannot be reached.
    """
    signing = _model_signing("signing")
    _require_whole(folder, progress)
    config = signing.Config().set_hashing_config(_Known(folder))
    if private_key is None:
        try:
            config.use_sigstore_signer(use_ambient_credentials="CI" in os.environ)
        except Exception as error:  # sigstore raises what its parts raise
            raise _unsigned(error) from error
    else:
        try:
            config.use_elliptic_key_signer(
                private_key=private_key,
                password=password.encode() if password else None,  # the library hands it on as bytes
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{private_key} cannot sign ({str(error).partition('.')[0] or type(error).__name__})",
                "Name a PEM file of a private key on the curve P-256, P-384 or P-521, and its --password-file.",
            ) from error
    beside = folder.with_name(f".{folder.name}.{SIGNATURE}")
    try:
        config.sign(folder, beside)
        atomic.write(folder / SIGNATURE, beside.read_bytes())
    except OSError:
        raise
    except Exception as error:  # sigstore raises what its parts raise
        raise _unsigned(error) from error
    finally:
        beside.unlink(missing_ok=True)


def _unsigned(error: Exception) -> WorkError:
    return WorkError(
        f"sigstore did not sign ({_first_line(error)})", "It needs a network; sign with --key without one."
    )


def signer_of(
    folder: Path, policy: Policy, progress: Progress | None = None, verified: bool = False
) -> str | None:
    """The name of the policy's signer that signed the bundle as it is; None: it is not signed, and may be so.

    `verified`: the content of every file was just compared with the manifest, and need not be read again.

    Raises:
        UserError: the folder is no bundle.
        WorkError: the bundle is damaged, not signed, changed after it was signed, or signed by another.
    """
    _require_whole(folder, progress, content=not verified)
    return signer_of_listed(folder, policy)


def signer_of_listed(folder: Path, policy: Policy) -> str | None:
    """The name of the policy's signer that signed what the manifest in `folder` lists; None as above.

    The listed files need not be there: who signed is known before they are fetched.

    Raises:
        WorkError: it is not signed, or by another.
    """
    signature = folder / SIGNATURE
    if not signature.exists():
        if policy.unsigned:
            return None
        raise WorkError(f"{folder} is not signed", "Fetch a signed one, or allow `unsigned` in the policy.")
    if signature.stat().st_size > LARGEST:
        raise WorkError(f"{signature} is over {LARGEST >> 20} MB", "Fetch the bundle again.")
    refusals, known = [], _Known(folder)
    for signer in policy.signers:
        try:
            _verifier(signer).set_hashing_config(known).verify(folder, signature)
        except OSError:
            raise
        except Exception as error:  # a hostile signature, or sigstore's own errors
            refusals.append(f"{signer.name}: {_told(error)}")
        else:
            return signer.name
    raise WorkError(
        f"{folder} is not signed by one whom the policy names ({'; '.join(refusals) or 'it names nobody'})",
        "Fetch the bundle again from whom you trust, or add the signer to the policy.",
    )


def _verifier(signer: Signer) -> Any:
    config = _model_signing("verifying").Config()
    if signer.public_key:
        return config.use_elliptic_key_verifier(public_key=signer.public_key)
    try:
        return config.use_sigstore_verifier(
            identity=signer.identity, oidc_issuer=signer.issuer, trust_config=signer.trust_config
        )
    except Exception as error:  # sigstore raises what its parts raise
        how = (
            f"as {signer.trust_config} has them"
            if signer.trust_config
            else "over the network; name trust_config"
        )
        raise ValueError(f"sigstore's roots of trust cannot be had {how} ({_first_line(error)})") from error


class _Known:
    """In the place of model signing's own hashing: the digests of a verified bundle, so that it is read once."""

    def __init__(self, folder: Path):
        files = files_of(folder, Manifest.read(folder))
        self._digests = {path: entry.sha256 for path, entry in files.items() if path != SIGNATURE}

    def hash(self, model_path: Path, files_to_hash: object = None) -> Any:
        manifest = _model_signing("manifest")
        how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
        items = [
            manifest.FileManifestItem(
                path=Path(path), digest=manifest.hashing.Digest("sha256", bytes.fromhex(digest))
            )
            for path, digest in self._digests.items()
        ]
        return manifest.Manifest(model_path.name, items, manifest.SerializationType.from_args(how))

    def add_ignored_paths(self, *, model_path: Path, paths: object) -> None:
        """Nothing is ignored here but the signature itself, whatever a signature says."""


def _require_whole(folder: Path, progress: Progress | None, content: bool = True) -> None:
    if problems := verify(folder, progress, content):
        raise WorkError(
            f"{folder} is not what was built: {problems[0].path}: {problems[0].message}",
            "Fetch or build the bundle again.",
        )


def _model_signing(module: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:
        raise WorkError(
            "The package model-signing is not installed, which makes and checks signatures",
            'Install it: pip install "ernie-export[distribute]".',
        ) from error


def _told(error: BaseException) -> str:
    """What a verification said; of files that are not those that were signed, the names."""
    differ = sorted(set(re.findall(r"(?:mismatch for|Missing|Unexpected)\D*?'([^'\\]+)", str(error))))
    if not str(error).startswith("Signature mismatch") or not differ:
        return _first_line(error)
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    return f"Signature mismatch: other bytes were signed of {', '.join(differ[:3])}{more}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]
