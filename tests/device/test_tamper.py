"""Every tampered bundle is refused, each with a message of its own, and leaves the device as it was: docs/tamper.md."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ernie_export.device.install import Offer, install
from ernie_export.device.place import Place
from ernie_export.distribute.policy import Policy
from ernie_export.errors import ErnieExportError
from tests import answer_table
from tests.conftest import BuiltBundle
from tests.device.conftest import resealed
from tests.device.tampering import ALL, REGISTRY, Offered, Tampering
from tests.distribute.test_signing import key_pair

DOCUMENT = Path(__file__).parents[2] / "docs" / "tamper.md"
COLUMNS = ("attack", "answer")
PREFACE = """\
# Tampered bundles

What `ernie-export device install` answers to {count} bundles that somebody tampered with. The device has an
active version, and a policy that takes the signature of one key. Every answer is one line, and says what is
wrong; the device is afterwards as it was.

This table is checked by `tests/device/test_tamper.py`, which installs each, and written by
`pytest tests/device/test_tamper.py --write-tamper`.
"""


@pytest.fixture(scope="module")
def world(bundle: BuiltBundle, tmp_path_factory: pytest.TempPathFactory) -> Offered:
    """What the attacks begin with; `folder` is copied for each."""
    root = tmp_path_factory.mktemp("world")
    release, _ = key_pair(root, "release")
    other, _ = key_pair(root, "other")
    made = {}
    for recipe, time in (("int8", "2980"), ("int4", "2990")):
        folder = root / recipe
        shutil.copytree(bundle(recipe), folder)
        resealed(folder, time=f"{time}-01-01T00:00:00+00:00")
        made[recipe] = Offered(root, folder, release, other, root / "int8")
        made[recipe].sign()
    install(Offer.find(str(root / "int8")), Place(root / "device"), policy(root))
    return made["int4"]


def policy(root: Path) -> Policy:
    return Policy.of_key(root / "release.pem")


@contextmanager
def hostile(offered: Offered) -> Iterator[int]:
    """A registry that answers as the attack says; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = next((give for end, give in offered.blobs.items() if self.path.endswith(end)), None)
            data, headers = answer() if answer else (b"", {})
            try:
                self.send_response(200 if answer or self.path == "/v2/" else 404)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:
                pass  # who has seen enough hangs up

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def answer(tampering: Tampering, offered: Offered, root: Path) -> str:
    """What the device says; it is as it was."""
    place = Place(root / "device")
    before = place.active()
    with pytest.raises(ErnieExportError) as refused:
        if tampering.by is not REGISTRY:
            install(Offer.find(str(offered.folder)), place, policy(offered.release.parent))
        else:
            with hostile(offered) as port:
                pinned = next((end for end in offered.blobs if end.startswith("/manifests/sha256:")), "")
                end = f"@{pinned.removeprefix('/manifests/')}" if pinned else ":1"
                found = Offer.find(f"oci://localhost:{port}/bundle{end}", plain_http=True)
                install(found, place, policy(offered.release.parent))
    assert before is not None and place.active() == before
    assert [each.number for each in place.all()] == [before.number]
    assert [path.name for path in (root / "device" / "generations").iterdir()] == [str(before.number)]
    return str(refused.value)


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Those of the document; with --write-tamper an empty dict, which becomes the document."""
    if not request.config.getoption("--write-tamper", default=False):
        yield read()
        return
    given: dict[str, str] = {}
    yield given
    DOCUMENT.write_text(render(given), "utf-8")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tampering", ALL, ids=lambda tampering: tampering.name)
def test_a_tampered_bundle_is_refused(
    tampering: Tampering,
    world: Offered,
    answers: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    root = tmp_path / "root"
    shutil.copytree(world.folder, root / "bundle")
    shutil.copytree(world.root / "device", root / "device", symlinks=True)
    offered = Offered(root, root / "bundle", world.release, world.other, world.another)
    tampering.tamper(offered)
    said = plain(answer(tampering, offered, root), root)
    assert "\n" not in said and "defect" not in said
    if request.config.getoption("--write-tamper", default=False):
        answers[tampering.name] = said
    else:
        assert said == answers[tampering.name]


def plain(said: str, root: Path) -> str:
    """Without what differs from run to run, and from machine to machine."""
    said = said.replace(f"{root}/", "").replace(str(root), "…")
    said = re.sub(r"\b[0-9a-f]{64}\b", "…", said)
    said = re.sub(r"localhost:\d+", "localhost:PORT", said)
    said = re.sub(
        r"\bis [0-9.einf+-]+, and must be (at \w+) [0-9.e+-]+(?<=\d)", r"is …, and must be \1 …", said
    )
    return re.sub(r"Known: .*", "Known: …", said)


def test_what_was_not_tampered_with_is_taken(world: Offered, tmp_path: Path) -> None:
    shutil.copytree(world.root / "device", tmp_path / "device", symlinks=True)
    place = Place(tmp_path / "device")
    installed = install(Offer.find(str(world.folder)), place, policy(world.root))
    assert place.active() == installed and installed.signer == "release.pem"


def test_every_refusal_has_a_message_of_its_own(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-tamper", default=False):
        pytest.skip("the table is written when all tests are done")
    given = read()
    assert list(given) == [tampering.name for tampering in ALL] and len(ALL) >= 50
    told: dict[str, str] = {}
    for name, said in given.items():
        assert told.setdefault(said, name) == name
    assert render(given) == DOCUMENT.read_text("utf-8")


def render(given: dict[str, str]) -> str:
    lines = [PREFACE.format(count=len(ALL))]
    for by in dict.fromkeys(tampering.by for tampering in ALL):
        rows = ((each.name, given[each.name]) for each in ALL if each.by == by)
        lines += answer_table.lines(f"By one {by}", COLUMNS, rows)
    return "\n".join(lines)


def read() -> dict[str, str]:
    found = answer_table.rows(DOCUMENT.read_text("utf-8"), COLUMNS)
    return {name: said for _, (name, said) in found}
