"""model.sig: who says that he signed a bundle. None but the holder of the key is believed."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_export.bundle.files import SIGNATURE
from ernie_export.distribute.policy import Policy, Signer
from ernie_export.distribute.signing import sign, signer_of_listed
from tests.fuzz.harnesses import verify_folder

JSON = True
TOKENS = (b'"dsseEnvelope": {', b'"payload": "', b'"payloadType": ', b'"signatures": [', b'"sig": "', b'"keyid": "',
          b'"verificationMaterial": {', b'"publicKey": {', b'"hint": "', b'"tlogEntries": []')  # fmt: skip
CURVE = ["-name", "prime256v1"]


@cache
def signed() -> dict[str, bytes]:
    """A bundle's files and its signature, and the public key beside them."""
    with TemporaryDirectory() as name:
        folder, key = Path(name) / "bundle", Path(name) / "key"
        (folder / "weights").mkdir(parents=True)
        for path, content in verify_folder.bundle().items():
            (folder / path).write_bytes(content)
        subprocess.run(["openssl", "ecparam", *CURVE, "-genkey", "-noout", "-out", key], check=True)
        public = subprocess.run(
            ["openssl", "ec", "-in", key, "-pubout"], capture_output=True, check=True
        ).stdout
        sign(folder, key)
        made = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
        return made | {"key.pem": public}


def seeds() -> Iterator[bytes]:
    right = signed()[SIGNATURE]
    yield right
    spelled = json.loads(right)
    payload = spelled["dsseEnvelope"]["payload"]
    spelled["dsseEnvelope"]["payload"] = payload[:8] + "\n" + payload[8:]  # the same bytes to who decodes it
    yield json.dumps(spelled).encode()
    other = json.loads(right)
    other["dsseEnvelope"]["signatures"] = []
    yield json.dumps(other).encode()


def parse(data: bytes, folder: Path) -> None:
    bundle = folder / "bundle"
    if not bundle.exists():
        (bundle / "weights").mkdir(parents=True)
        for path, content in signed().items():
            (folder if path == "key.pem" else bundle).joinpath(path).write_bytes(content)
    (bundle / SIGNATURE).write_bytes(data)
    policy = Policy(signers=[Signer(name="release", public_key=folder / "key.pem")])
    if signer_of_listed(bundle, policy):  # then it is the signature that was made, in whatever spelling
        found, right = (json.loads(each)["dsseEnvelope"]["payload"] for each in (data, signed()[SIGNATURE]))
        assert base64.b64decode(found + "==") == base64.b64decode(right)
