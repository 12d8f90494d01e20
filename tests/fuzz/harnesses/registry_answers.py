"""What a registry answers to a push and to an installation: status, headers and bodies, each whatever it likes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from urllib3 import HTTPHeaderDict, HTTPResponse

from ernie_export.distribute.address import Address
from ernie_export.distribute.connection import Connection
from ernie_export.distribute.registry import Broken, Registry
from ernie_export.distribute.sessions import Sessions
from ernie_export.errors import UserError, WorkError
from ernie_export.progress import Silent
from tests.fuzz.harness import as_object

JSON = True
TOKENS = (b'"Location": ', b'"Range": "0-4"', b'"Content-Encoding": "gzip"', b'"status": 202', b'"status": 404',
          b'"errors": [{"message": ', b'"Docker-Upload-UUID"', b'"Content-Length": "9"', b"206", b"401")  # fmt: skip
CONTENT = b"0123456789"
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
TEXT = CONTENT.decode()


def _answer(status: int, body: str = "", **headers: str) -> dict[str, Any]:
    return {"status": status, "headers": headers, "body": body}


def seeds() -> Iterator[bytes]:
    place = "http://localhost/v2/a/blobs/uploads/1"
    upload = [_answer(202, Location=place), _answer(202, Location=place, Range="0-9"), _answer(201)]
    go_on = [_answer(204, Location=place, Range="0-4"), _answer(202, Location=place), _answer(201)]
    refused = [_answer(500), _answer(403, json.dumps({"errors": [{"message": "quota"}]}))]
    for what, answers in (
        ("manifest", [_answer(200, "{}")]),
        ("has", [_answer(404)]),
        ("download", [_answer(200, TEXT)]),
        ("download", [_answer(200, TEXT[:4]), _answer(206, TEXT[4:])]),
        ("upload", upload),
        ("resume", go_on),
        ("upload_bytes", [_answer(404), *upload]),
        ("upload", refused),
        ("put_manifest", [_answer(201)]),
    ):
        yield json.dumps({"what": what, "answers": answers}).encode()


class Answers(Connection):
    """A connection whose other end says what it was given, and then hangs up."""

    def __init__(self, answers: list[Any]):
        self._left, self._host = iter(answers), "localhost"

    def ask(self, method: str, place: str, *_: Any, **__: Any) -> requests.Response:
        answer = next(self._left, None)
        if not isinstance(answer, dict):
            raise requests.ConnectionError("gone")
        made = requests.Response()
        status, headers, body = (answer.get(key) for key in ("status", "headers", "body"))
        made.status_code = status if isinstance(status, int) and 200 <= status < 600 else 500
        named = headers.items() if isinstance(headers, dict) else ()
        told = HTTPHeaderDict({name: value for name, value in named if isinstance(value, str) and name})
        made.headers.update(told)
        content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else b""
        made.raw = HTTPResponse(io.BytesIO(content), told, made.status_code, preload_content=False)
        made.url = "http://localhost/v2/a/"
        return made


def parse(data: bytes, folder: Path) -> None:
    value = as_object(data)
    if value is None or not isinstance(value.get("answers"), list):
        return
    registry = object.__new__(Registry)
    registry.address = Address.parse("oci://localhost/a:1")
    registry._connection = Answers(value["answers"][:20])
    registry._sessions, registry._pause = Sessions(folder / "sessions"), 0
    source, to = folder / "source", folder / "to"
    source.write_bytes(CONTENT)
    to.unlink(missing_ok=True)
    what, size = value.get("what"), len(CONTENT)
    if what == "resume":
        registry._sessions.remember(f"localhost/a@{DIGEST}", "http://localhost/v2/a/blobs/uploads/1")
    try:
        with Silent().step("") as step:
            if what == "manifest":
                registry.manifest()
            elif what == "has":
                registry.has(DIGEST)
            elif what == "put_manifest":
                registry.put_manifest(b"{}")
            elif what == "upload_bytes":
                registry.upload_bytes(CONTENT)
            elif what in ("upload", "resume"):
                registry.upload(source, DIGEST, size, step)
            else:
                registry.download(DIGEST, size, to, step)
                assert to.read_bytes() == CONTENT
    except Broken as broken:
        assert str(broken)
    except (UserError, WorkError):
        assert not to.exists() or to.stat().st_size <= size
        raise
