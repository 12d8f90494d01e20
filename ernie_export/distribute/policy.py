"""Whose signatures are taken: a TOML file that a device's owner writes.

unsigned = false

[[signers]]
name = "release"
public_key = "release.pem"     # beside the policy, or an absolute path

[[signers]]
name = "ci"
identity = "https://github.com/acme/robots/.github/workflows/release.yml@refs/heads/main"
issuer = "https://token.actions.githubusercontent.com"
trust_config = "sigstore.json" # for a device without a network: sigstore's roots of trust
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ernie_export import toml_file
from ernie_export.errors import UserError


class Signer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    public_key: Path | None = None
    """PEM, an elliptic curve of NIST."""
    identity: str | None = None
    """Whom a sigstore certificate names."""
    issuer: str | None = None
    """Which OpenID Connect provider vouches for the identity."""
    trust_config: Path | None = None
    """A sigstore client's trust configuration (JSON); None: that of sigstore's public instance, over the network."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.public_key is None) == (self.identity is None) or (self.identity is None) != (
            self.issuer is None
        ):
            raise ValueError("give either public_key, or identity and issuer")
        if self.trust_config and self.public_key:
            raise ValueError("trust_config goes with identity and issuer")
        return self

    @property
    def files(self) -> list[Path]:
        """What is read to check a signature."""
        return [path for path in (self.public_key, self.trust_config) if path]

    def beside(self, folder: Path) -> Self:
        """With the files that are named relative to `folder`."""
        named = {"public_key": self.public_key, "trust_config": self.trust_config}
        return self.model_copy(update={key: path and folder / path for key, path in named.items()})


class Policy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    unsigned: bool = False
    """Whether a bundle without any signature is taken."""
    downgrade: bool = False
    """Whether a bundle older than the active one may be installed."""
    max_token_ms: Annotated[float, Field(gt=0)] | None = None
    """The most that a token may take, at the median of the trial; None: it is not looked at."""
    memory_headroom: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """The part of the device's memory that must stay free while the engine runs."""
    signers: list[Signer] = []

    @classmethod
    def read(cls, path: Path) -> Policy:
        """A policy; its keys exist.

        Raises:
            UserError: it is none, or could take nothing.
        """
        remedy = "Mend it; the documentation has an example."
        policy = toml_file.checked(cls, toml_file.read(path, "policy"), path, "policy", remedy)
        if not policy.signers and not policy.unsigned:
            raise UserError(f"The policy {path} names no signer", "Add [[signers]], or unsigned = true.")
        beside = [signer.beside(path.parent) for signer in policy.signers]
        for file in (file for signer in beside for file in signer.files):
            if not file.is_file():
                raise UserError(f"The policy {path} names a file that is not there: {file}", "Put it there.")
        return policy.model_copy(update={"signers": beside})

    @classmethod
    def of_key(cls, public_key: Path) -> Policy:
        """Takes what this one key signed."""
        if not public_key.is_file():
            raise UserError(f"{public_key} is no file", "Name the PEM file of a public key.")
        return cls(signers=[Signer(name=public_key.name, public_key=public_key)])
