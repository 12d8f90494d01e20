from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_export.distribute.address import Address
from ernie_export.errors import UserError

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("oci://example.com/a", ("example.com", "a", "latest", None)),
        ("oci://localhost:5000/ernie/nano-1.0:V1_2", ("localhost:5000", "ernie/nano-1.0", "V1_2", None)),
        (f"oci://h/a/b@{DIGEST}", ("h", "a/b", None, DIGEST)),
        (f"oci://h/a:1@{DIGEST}", ("h", "a", "1", DIGEST)),
        ("oci://[::1]:5000/a:x", ("[::1]:5000", "a", "x", None)),
    ],
)
def test_what_an_address_means(text: str, parts: tuple[str, ...]) -> None:
    address = Address.parse(text)
    assert tuple(address) == parts
    assert Address.parse(str(address)) == address
    assert address.reference == (address.digest or address.tag)


@pytest.mark.parametrize(
    "text",
    ["", "oci://", "oci://h", "h/a:1", "oci://h/A", "oci://h/a:", "oci://h/a@sha256:1", "oci://h/../a:1",
     "oci://h/a//b", "oci://h:port/a", "oci://u@h/a", "oci://h/a:1\n", "https://h/a:1", "oci://h/-a"],
)  # fmt: skip
def test_no_address(text: str) -> None:
    with pytest.raises(UserError, match="is no address in a registry"):
        Address.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_mistake(text: str) -> None:
    try:
        address = Address.parse(f"oci://{text}")
    except UserError:
        return
    assert Address.parse(str(address)) == address
