"""ROOT/policy.toml and ROOT/service.toml: what a device's owner wrote, and nobody else could have."""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_export.device.place import Place
from ernie_export.device.rules import policy_of, service_of
from ernie_export.device.service import Service
from ernie_export.distribute.policy import Policy
from ernie_export.errors import UserError

POLICY = "[[signers]]\nname = 'us'\npublic_key = 'keys/us.pem'\n"
SERVICE = "restart = ['true']\nready = ['true']\n"


@pytest.fixture
def owned(place: Place) -> Place:
    keys = place.root / "keys"
    keys.mkdir(parents=True)
    (keys / "us.pem").write_text("")
    (place.root / "policy.toml").write_text(POLICY)
    (place.root / "service.toml").write_text(SERVICE)
    return place


def both(place: Place) -> object:
    return policy_of(place), service_of(place)


def test_what_the_owner_wrote(owned: Place) -> None:
    assert [signer.name for signer in policy_of(owned).signers] == ["us"]
    service = service_of(owned)
    assert service and service.within == 120


def test_there_may_be_no_service_but_there_is_a_policy(place: Place) -> None:
    assert service_of(place) is None
    with pytest.raises(UserError, match="so nobody's bundles are taken"):
        policy_of(place)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("policy.toml", r"Everybody can write .*policy\.toml"),
        ("service.toml", r"Everybody can write .*service\.toml"),
        ("keys/us.pem", r"Everybody can write .*us\.pem"),
        ("keys", r"Everybody can replace .*us\.pem"),
        (".", r"Everybody can replace .*policy\.toml"),
    ],
)
def test_what_everybody_could_have_written(owned: Place, path: str, words: str) -> None:
    both(owned)
    target = owned.root / path
    target.chmod(target.stat().st_mode | 0o002)
    with pytest.raises(UserError, match=words):
        both(owned)


def test_a_file_in_a_folder_where_each_keeps_his_own(owned: Place, tmp_path: Path) -> None:
    """/tmp, say."""
    (owned.root / "keys").chmod(0o1777)
    policy_of(owned)


@pytest.mark.parametrize("read", [policy_of, service_of])
def test_a_file_that_was_named_and_is_not_there(
    place: Place, tmp_path: Path, read: Callable[[Place, Path], object]
) -> None:
    with pytest.raises(UserError, match="There is no"):
        read(place, tmp_path / "none.toml")


def test_the_examples_of_the_documentation() -> None:
    document = (Path(__file__).parents[2] / "docs" / "device.md").read_text("utf-8")

    def block(begins: str) -> dict[str, object]:
        found = re.search(rf"^    {begins}.*\n(?:    .*\n|\n(?=    ))*", document, re.MULTILINE)
        assert found
        return tomllib.loads(textwrap.dedent(found[0]))

    policy = Policy.model_validate(block("unsigned"))
    assert set(Policy.model_fields) == set(block("unsigned")) and policy.signers[0].name == "release"
    assert Service.model_validate(block("restart")).within == 120
