from __future__ import annotations

import pytest

from ernie_export.errors import UserError
from ernie_export.target import Target


def test_every_row_of_the_table_is_found_by_its_name() -> None:
    assert "cpu" in {target.name for target in Target.all()}
    for target in Target.all():
        assert Target.find(target.name) == target
        assert target.description


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpuu", "No target is named 'cpuu'. Did you mean cpu? Known: cpu."),
        ("", "No target is named ''. Known: cpu."),
    ],
)
def test_an_unknown_target_names_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Target.find(name)
    assert str(caught.value) == message
