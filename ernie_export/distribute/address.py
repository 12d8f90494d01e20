"""Where a bundle lies in a registry: oci://host[:port]/repository[:tag | @sha256:digest]."""

from __future__ import annotations

import re
from typing import NamedTuple

from ernie_export.errors import UserError

SCHEME = "oci://"
# The grammar of the OCI distribution specification 1.1, and of host names.
_HOST = (
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](?::[0-9]{1,5})?)"
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"(?P<repository>{_COMPONENT}(?:/{_COMPONENT})*)"
_TAG = r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
_DIGEST = r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
ADDRESS = re.compile(f"{_HOST}/{_REPOSITORY}{_TAG}{_DIGEST}")


class Address(NamedTuple):
    host: str
    """With its port, where one is given."""
    repository: str
    tag: str | None
    digest: str | None
    """sha256:… of the OCI manifest: names one state of it for ever."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address as a user types it; without a tag and a digest it means the tag `latest`.

        Raises:
            UserError: it is none.
        """
        found = ADDRESS.fullmatch(text.removeprefix(SCHEME))
        if not text.startswith(SCHEME) or not found:
            raise UserError(
                f"{text!r} is no address in a registry",
                "Write oci://HOST/REPOSITORY:TAG, in small letters but for the tag, "
                "as in oci://registry.example.com/ernie/nano:1.",
            )
        parts = found.groupdict()
        tag = parts["tag"] if parts["tag"] or parts["digest"] else "latest"
        return cls(parts["host"], parts["repository"], tag, parts["digest"])

    @property
    def reference(self) -> str:
        """What the registry looks up: the digest, where there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def at(self, digest: str) -> Address:
        return self._replace(tag=None, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{SCHEME}{self.host}/{self.repository}{tag}{digest}"
