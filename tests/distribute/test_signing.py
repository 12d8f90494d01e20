"""Signatures, and what they are worth to a policy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ernie_export.bundle.files import SIGNATURE
from ernie_export.bundle.verify import verify
from ernie_export.distribute.address import Address
from ernie_export.distribute.policy import Policy, Signer
from ernie_export.distribute.pull import pull
from ernie_export.distribute.push import push
from ernie_export.distribute.registry import Registry
from ernie_export.distribute.signing import sign, signer_of
from ernie_export.errors import UserError, WorkError
from tests.conftest import BuiltBundle
from tests.distribute.docker_registry import DockerRegistry

PEM = serialization.Encoding.PEM


def key_pair(folder: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(bundle: BuiltBundle, tmp_path: Path) -> tuple[Path, Path]:
    """A signed bundle, and the public key."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle("int4"), folder)
    private, public = key_pair(tmp_path, "release")
    sign(folder, private)
    return folder, public


def test_who_signed(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, public = signed
    assert not verify(folder)
    assert signer_of(folder, Policy.of_key(public)) == "release.pem"
    _, other = key_pair(tmp_path, "other")
    (tmp_path / "policy.toml").write_text(
        '[[signers]]\nname = "another"\npublic_key = "other.pem"\n'
        '[[signers]]\nname = "the release"\npublic_key = "release.pem"\n'
    )
    assert signer_of(folder, Policy.read(tmp_path / "policy.toml")) == "the release"
    with pytest.raises(WorkError, match="is not signed by one whom the policy names"):
        signer_of(folder, Policy.of_key(other))


def test_a_second_signature_takes_the_place_of_the_first(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, public = signed
    private, other = key_pair(tmp_path, "other", b"secret")
    sign(folder, private, "secret")
    assert signer_of(folder, Policy.of_key(other))
    with pytest.raises(WorkError, match="is not signed by one"):
        signer_of(folder, Policy.of_key(public))


def test_it_travels_with_the_bundle(
    registry: DockerRegistry, signed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, public = signed
    there = Registry(Address.parse(registry.address("signed")), plain_http=True)
    push(folder, there)
    pull(there, tmp_path / "device")
    assert signer_of(tmp_path / "device", Policy.of_key(public)) == "release.pem"


def flip(path: Path, at: int = -2) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["model.onnx", "manifest.json", "report.json", "recipe.toml", "tokenizer.json"]
)
def test_one_changed_byte_of_any_file(signed: tuple[Path, Path], name: str) -> None:
    folder, public = signed
    flip(folder / name)
    with pytest.raises(WorkError, match=r"Signature mismatch|is not what was built"):
        signer_of(folder, Policy.of_key(public))


def test_a_changed_signature(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, public = signed
    policy, path = Policy.of_key(public), folder / SIGNATURE
    right = json.loads(path.read_bytes())
    for change in ("", "{}", "[]", "\udcff", '{"mediaType": 1}', "x" * 1000):
        path.write_bytes(change.encode(errors="surrogateescape"))
        with pytest.raises(WorkError, match="is not signed by one"):
            signer_of(folder, policy)
    wrong = json.loads(json.dumps(right))
    payload = wrong["dsseEnvelope"]["payload"]
    wrong["dsseEnvelope"]["payload"] = payload[:-8] + payload[-4:] + payload[-8:-4]
    path.write_text(json.dumps(wrong))
    with pytest.raises(WorkError, match="is not signed by one"):
        signer_of(folder, policy)
    path.write_bytes(b" " * (17 << 20))
    with pytest.raises(WorkError, match="is over 16 MB"):
        signer_of(folder, policy)


def test_no_signature(bundle: BuiltBundle, tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "release")
    with pytest.raises(WorkError, match="is not signed"):
        signer_of(bundle("int4"), Policy.of_key(public))
    assert signer_of(bundle("int4"), Policy(unsigned=True)) is None


def test_a_signature_of_another_bundle(
    signed: tuple[Path, Path], bundle: BuiltBundle, tmp_path: Path
) -> None:
    folder, public = signed
    shutil.copytree(bundle("int8"), tmp_path / "int8")
    shutil.copy(folder / SIGNATURE, tmp_path / "int8" / SIGNATURE)
    with pytest.raises(WorkError, match="Signature mismatch"):
        signer_of(tmp_path / "int8", Policy.of_key(public))


def test_what_cannot_sign(bundle: BuiltBundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle("int4"), folder)
    private, public = key_pair(tmp_path, "locked", b"secret")
    other = tmp_path / "rsa.key"
    key = rsa.generate_private_key(65537, 2048)
    hidden = serialization.NoEncryption()
    other.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden))
    for path, password in (
        (private, None),
        (private, "wrong"),
        (public, None),
        (other, None),
        (tmp_path, None),
    ):
        with pytest.raises(UserError, match="cannot sign"):
            sign(folder, path, password)
    assert not (folder / SIGNATURE).exists()
    flip(folder / "model.onnx")
    good, _ = key_pair(tmp_path, "good")
    with pytest.raises(WorkError, match="is not what was built"):
        sign(folder, good)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is reached, and nothing was kept from when it was."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def trust_config(path: Path) -> Path:
    """The roots of trust of sigstore's public instance, as its client brings them along."""
    [store] = [
        folder
        for folder in (files("sigstore") / "_store").iterdir()
        if folder.name.endswith("tuf-repo-cdn.sigstore.dev")
    ]
    content = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": json.loads((store / "trusted_root.json").read_text()),
        "signingConfig": json.loads((store / "signing_config.v0.2.json").read_text()),
    }
    path.write_text(json.dumps(content))
    return path


def test_sigstore_without_a_network(signed: tuple[Path, Path], no_network: None, tmp_path: Path) -> None:
    """Signing says what it lacks; a check does too, and with roots of trust that are here it is made."""
    folder, _ = signed
    before = (folder / SIGNATURE).read_bytes()
    with pytest.raises(WorkError, match=r"sigstore did not sign \(.*TUF.*\)\. It needs a network"):
        sign(folder, None)
    assert (folder / SIGNATURE).read_bytes() == before
    signer = Signer(name="ci", identity="https://a", issuer="https://b")
    with pytest.raises(WorkError, match="roots of trust cannot be had over the network; name trust_config"):
        signer_of(folder, Policy(signers=[signer]))
    offline = signer.model_copy(update={"trust_config": trust_config(tmp_path / "sigstore.json")})
    with pytest.raises(WorkError, match="is not signed by one whom the policy names") as refused:
        signer_of(folder, Policy(signers=[offline]))
    assert "roots of trust" not in str(refused.value)  # it was made with a key, and sigstore says so
    (tmp_path / "sigstore.json").write_text("{")
    with pytest.raises(WorkError, match=r"cannot be had as .*sigstore\.json has them"):
        signer_of(folder, Policy(signers=[offline]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no signer"),
        ("unsigned = 3", "unsigned"),
        ("[", "is not TOML"),
        ("unsinged = true", "unsinged"),
        ('[[signers]]\nname = "a"', "either public_key, or identity and issuer"),
        ('[[signers]]\nname = "a"\nidentity = "b"', "either public_key, or identity and issuer"),
        ('[[signers]]\nname = "a"\npublic_key = "b"\ntrust_config = "c"', "goes with identity and issuer"),
        ('[[signers]]\nname = "a"\npublic_key = "none.pem"', "names a file that is not there"),
    ],
)
def test_a_wrong_policy(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        Policy.read(tmp_path / "policy.toml")


def test_the_commands(bundle: BuiltBundle, tmp_path: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ernie_export", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True)

    folder = tmp_path / "bundle"
    shutil.copytree(bundle("int4"), folder)
    private, public = key_pair(tmp_path, "release", b"secret")
    (tmp_path / "password").write_text("secret\n")
    unsigned = run("verify", folder, "--public-key", public)
    assert unsigned.returncode == 1 and "is not signed" in unsigned.stderr
    nobody = run("sign", folder)
    assert nobody.returncode == 2 and "openssl" in nobody.stderr
    ran = run("sign", folder, "--key", private, "--password-file", tmp_path / "password")
    assert ran.returncode == 0 and "is signed by" in ran.stdout, ran.stderr
    checked = run("verify", folder, "--public-key", public)
    assert checked.returncode == 0 and "signed by release.pem" in checked.stdout
    (tmp_path / "policy.toml").write_text("unsigned = true")
    foreign = run("verify", folder, "--policy", tmp_path / "policy.toml")
    assert foreign.returncode == 1 and "it names nobody" in foreign.stderr


def test_model_signing_itself_takes_it(signed: tuple[Path, Path]) -> None:
    """What we sign is what any other user of the OpenSSF's format checks, hashing the files itself."""
    from model_signing import verifying

    folder, public = signed
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, folder / SIGNATURE)
    flip(folder / "model.onnx")
    with pytest.raises(ValueError, match="Signature mismatch"):
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, folder / SIGNATURE)
