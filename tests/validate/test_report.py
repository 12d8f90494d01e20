from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ernie_export.errors import UserError
from ernie_export.recipe import Gate
from ernie_export.validate.document import LARGEST
from ernie_export.validate.gates import evaluate
from ernie_export.validate.report import Claim, Inputs, Report, Sizes, Source, layer_report

METRICS = {"logits.kl_mean": 0.25, "routing.agreement": 0.975, "logits.non_finite": 0.0}
GATES = {
    "logits.kl_mean": Gate(max=0.05),
    "routing.agreement": Gate(min=0.9),
    "greedy.agreement": Gate(min=1),
}


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "tool": "ernie-export 1",
        "time": "2026-01-02T03:04:05+00:00",
        "checkpoint": Source(name="nano", fingerprint="ab" * 32, architecture="Ernie4_5_MoeForCausalLM"),
        "recipe": "int4",
        "target": "cpu",
        "verdict": "failed",
        "gates": evaluate(METRICS, GATES),
        "metrics": METRICS,
        "layers": [
            layer_report(
                1,
                {
                    "routing.agreement": 0.975,
                    "routing.experts": 0.99,
                    "routing.largest_changed_gap": math.inf,
                    "routing.score_difference": 0.5,
                },
            )
        ],
        "continuations": [],
        "inputs": Inputs(source="text", windows=1, tokens=2, sha256="cd" * 32),
        "sizes": Sizes(files={"model.onnx": 3}, parts={"experts": 2}),
        "timings": {"windows": 1.5},
        "software": {"python": "3.11"},
        "machine": {"cores": 2, "processor": "é"},
        "claims": [Claim(claim="decode", where="ran here")],
        "notes": [],
    }
    return Report(**{**fields, **changes})


def test_a_report_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report().write(path)
    read = Report.read(path)
    assert read == report().sealed()
    assert read.layers[0].largest_changed_gap == math.inf
    assert json.loads(path.read_bytes())["layers"][0]["largest_changed_gap"] == "Infinity"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_nan_survives_the_file(tmp_path: Path) -> None:
    report(metrics={"logits.kl_mean": math.nan}).write(tmp_path / "r.json")
    assert math.isnan(Report.read(tmp_path / "r.json").metrics["logits.kl_mean"])


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    small = report(
        gates=[], layers=[], metrics={}, software={}, machine={"p": "é"}, sizes=Sizes(files={}, parts={})
    )
    small.write(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for other in {whole[at] ^ 1, whole[at] ^ 0x20, ord(" "), ord("\n"), ord("0"), ord("\t")} - {
            whole[at]
        }:
            with pytest.raises(UserError):
                Report.parse(whole[:at] + bytes([other]) + whole[at + 1 :], path)


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d + b"\n", lambda d: d.replace(b"\n", b""), lambda d: b""]
)
def test_cut_longer_and_reformatted_reports_are_found(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "report.json"
    report().write(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match="report"):
        Report.read(path)


def test_a_verdict_turned_round_is_found(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report().write(path)
    path.write_bytes(path.read_bytes().replace(b'"failed"', b'"passed"'))
    with pytest.raises(UserError, match="seal is broken"):
        Report.read(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 200_000, "damaged"),
        (b'{"a": ' * 200_000, "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b'{"schema_version": 2}', "schema version 2"),
        (b'{"schema_version": "' + b"9" * 1000 + b'"}', "schema version 9"),
        (b'{"schema_version": 1, "extra": "\\ud800"}', "damaged"),
        (b'{"schema_version": 1, "metrics": {"x": 1e999999}}', "damaged"),
    ],
)
def test_hostile_files_are_one_clear_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        Report.read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="is over 64 MB"):
        Report.read(path)


def test_a_missing_report_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            Report.read(path)


def test_summary_rows_have_every_gate_and_what_was_measured() -> None:
    rows = {row.label: row for row in report().summary_rows()}
    assert list(rows) == [
        "KL divergence, mean",
        "Same experts",
        "Greedy text the same, mean",
        "Logits that are no numbers",
    ]
    assert rows["KL divergence, mean"][1:] == ("0.25", "≤ 0.05", False)
    assert rows["Same experts"][1:] == ("97.50%", "≥ 90.00%", True)
    assert rows["Greedy text the same, mean"][1:] == ("not measured", "≥ 100.00%", False)


def test_summary_rows_of_what_nobody_asked() -> None:
    (row,) = report(metrics={"perplexity.export": 31.456}, gates=[]).summary_rows()
    assert row == ("Perplexity of the export", "31.46", "", None)
