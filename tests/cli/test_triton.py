from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.cli import main
from tests.cli.test_schemas import check
from tests.conftest import BuiltBundle


def test_a_model_and_where_it_is(
    bundle: BuiltBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["triton", str(bundle("int4")), "--repository", str(tmp_path), "--context", "64"]
    assert main([*asked, "--json"]) == 0
    said = check("triton", capsys.readouterr().out)
    assert Path(said["config"]).is_file() and Path(said["model"]) == tmp_path / "ernie"
    assert main(asked) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'ernie'} exists. Give another --name")
    assert main([*asked, "--name", "second"]) == 0
    assert f"tritonserver --model-repository={tmp_path}" in capsys.readouterr().out


def test_sequences_are_counted(tmp_path: Path) -> None:
    assert main(["triton", str(tmp_path), "--repository", str(tmp_path), "--sequences", "0"]) == 2
