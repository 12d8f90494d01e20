"""Requests to one repository: who we are, whom we trust, and how long we wait. oras speaks for us."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from ernie_export.distribute.address import Address
from ernie_export.errors import UserError, WorkError

if TYPE_CHECKING:
    from requests import Response

CONNECT, READ = 10.0, 60.0
"""Seconds without an answer."""
TRUSTED = Path("/etc/docker/certs.d")
"""Where Docker looks for a registry's own CA: HOST/ca.crt."""


class Connection:
    def __init__(self, address: Address, ca_file: Path | None, plain_http: bool):
        """Raises: see Registry."""
        try:
            import oras.provider
        except ModuleNotFoundError as error:
            raise WorkError(
                "The package oras is not installed, which speaks to registries",
                'Install it: pip install "ernie-export[distribute]".',
            ) from error
        self._base = f"{'http' if plain_http else 'https'}://{address.host}/v2/"
        self._repository = f"{self._base}{address.repository}/"
        self._host = address.host
        self._ca = _ca(address.host, ca_file)
        self._client: Any = self._open(oras.provider.Registry, plain_http, "token")
        if self._scheme() == "basic":
            self._client = self._open(oras.provider.Registry, plain_http, "basic")
            self._log_in_once()

    def ask(
        self,
        method: str,
        place: str,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
        stream: bool = False,
    ) -> Response:
        """`place`: below the repository, or a whole URL.

        Raises:
            UserError: the registry's certificate is not trusted, or its password not known.
            requests.RequestException: the connection broke.
        """
        import requests
        from oras.provider import Registry

        # Without oras' own attempts: ours go on where a transfer stopped.
        once = inspect.unwrap(Registry.do_request)
        try:
            return once(
                self._client, urljoin(self._repository, place), method, data=data, headers=dict(headers or {}),
                stream=stream,
            )  # fmt: skip
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"{self._host} cannot be trusted ({_reason(error)})",
                "Name the CA of that registry with --ca-file, or use --plain-http for one without TLS.",
            ) from error
        except (ValueError, AttributeError) as error:  # what oras says where it has no password
            if isinstance(error, requests.RequestException):
                raise
            raise UserError(
                f"{self._host} wants a password", f"Log in with `docker login {self._host}`."
            ) from error

    def location(self, response: Response) -> str:
        """Where the registry says that an upload goes on; WorkError where it does not say."""
        try:
            return urljoin(response.url, response.headers["Location"])
        except (KeyError, ValueError) as error:
            raise WorkError(
                f"The registry {self._host} does not say where the upload goes on", "Look at its log."
            ) from error

    def _open(self, client: Any, plain_http: bool, auth: str) -> Any:
        from oras.container import Container
        from requests.adapters import HTTPAdapter

        class Patient(HTTPAdapter):
            def send(self, request: Any, **how: Any) -> Response:  # type: ignore[override]
                return super().send(request, **how | {"timeout": how.get("timeout") or (CONNECT, READ)})

        made = client(
            hostname=self._host, insecure=plain_http, tls_verify=str(self._ca) if self._ca else True,
            auth_backend=auth,
        )  # fmt: skip
        made.session.mount("https://", Patient())
        made.session.mount("http://", Patient())
        config = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "config.json"
        try:
            made.auth.load_configs(
                Container(f"{self._host}/x/y"), configs=[str(config)] if config.is_file() else None
            )
        except ValueError as error:
            raise UserError(
                f"{config} is not JSON", "Mend it, or log in again with `docker login`."
            ) from error
        return made

    def _scheme(self) -> str:
        """How the registry wants us to log in: "basic", "bearer", or "" for not at all."""
        import requests

        try:
            verify = str(self._ca) if self._ca else True
            with self._client.session.get(self._base, verify=verify, stream=True) as answer:
                asks = str(answer.headers.get("WWW-Authenticate", ""))
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"{self._host} cannot be trusted ({_reason(error)})",
                "Name the CA of that registry with --ca-file, or use --plain-http for one without TLS.",
            ) from error
        except requests.RequestException as error:
            raise WorkError(
                f"The registry {self._host} does not answer ({_reason(error)})",
                "Look at the address and the network; one without TLS needs --plain-http.",
            ) from error
        return asks.partition(" ")[0].lower()

    def _log_in_once(self) -> None:
        """Send the password with each request, and not only after a refusal: a body would go twice."""
        if not getattr(self._client.auth, "_basic_auth", None):
            raise UserError(f"{self._host} wants a password", f"Log in with `docker login {self._host}`.")
        self._client.session.headers.update(self._client.auth.get_auth_header())


def _ca(host: str, given: Path | None) -> Path | None:
    if given is None:
        usual = TRUSTED / host / "ca.crt"
        return usual if usual.is_file() else None
    if not given.is_file():
        raise UserError(f"{given} is no file", "Name the PEM file of the registry's CA with --ca-file.")
    if b"-----BEGIN CERTIFICATE-----" not in given.read_bytes()[: 1 << 20]:
        raise UserError(
            f"{given} holds no certificate in PEM form", "Name the PEM file of the registry's CA."
        )
    return given


def _reason(error: BaseException) -> str:
    """The innermost cause, in a line."""
    while (inner := error.__cause__ or error.__context__ or next(iter(error.args), None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return str(error).partition("\n")[0][:200]
